"""Ensembles of tiny models with different tokenizers, and teacher forcing of what they generate."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae import EnsembleForCausalLM
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

TRACED = {"return_dict_in_generate": True, "output_logits": True}


@cache
def member(
    architecture: str = "llama", tokenizer: Any = byte_level_bpe, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A small random model with one of the tokenizers of `tests.support.tokenizers`, built once."""
    return pair(architecture, seed, tokenizer())


def trio(policy: Any = None, **options: Any) -> EnsembleForCausalLM:
    """Members with byte-level BPE, bytes and a SentencePiece BPE."""
    return EnsembleForCausalLM.from_members(
        [member(), member("gpt2", raw_bytes, 1), member("gemma3", sentencepiece_bpe, 2)], policy, **options
    )


def encoded(ensemble: EnsembleForCausalLM, *texts: str) -> dict[str, torch.Tensor]:
    """A padded batch of prompts."""
    return dict(ensemble.tokenizer(list(texts), return_tensors="pt", padding=True))


def stepped(out: Any) -> torch.Tensor:
    """The logits of a `generate` call, of shape `(B, T, V)`."""
    return torch.stack(out.logits, dim=1)


def assert_close(got: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    """Compares logits as log-probabilities, or as probabilities if they are tiny, where fp32 sums differ."""
    got, expected = got.log_softmax(-1), expected.log_softmax(-1)
    likely = expected > -12
    torch.testing.assert_close(got[likely], expected[likely], atol=atol, rtol=0)
    torch.testing.assert_close(got.exp(), expected.exp(), atol=atol, rtol=0)


def forced(
    ensemble: EnsembleForCausalLM, inputs: dict[str, torch.Tensor], sequences: torch.Tensor, **options: Any
) -> torch.Tensor:
    """The log-probabilities of a completion by teacher forcing, `(B, T, V)`."""
    width = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(sequences[:, width:])], dim=1)
    with torch.no_grad():
        logits = ensemble(input_ids=sequences, attention_mask=mask, prompt_length=width, **options).logits
    assert logits[:, : width - 1].isnan().all()
    return logits[:, width - 1 : -1]
