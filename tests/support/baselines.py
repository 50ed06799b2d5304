"""Members whose distributions are written down, for cases that can be worked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_rlae.vocabulary import ByteVocabulary
from tests.support.models import bigram, constant


def log_table(tokenizer: Any, probs: Mapping[str, float]) -> torch.Tensor:
    """Logits `(V,)` with these probabilities of tokens, and e^-60 for all others; `""` is the end of the text."""
    ids_of = ByteVocabulary(tokenizer).ids_of
    logits = torch.full((len(tokenizer),), -60.0)
    for text, prob in probs.items():
        logits[ids_of[text.encode()][0] if text else tokenizer.eos_token_id] = torch.tensor(prob).log()
    return logits


def always(tokenizer: Any, probs: Mapping[str, float]) -> Any:
    """A member with these next-token probabilities after every text."""
    return constant(log_table(tokenizer, probs), tokenizer)


def after(tokenizer: Any, rest: Mapping[str, float], **probs: Mapping[str, float]) -> Any:
    """A member with the next-token probabilities `probs[t]` after the token t, and `rest` after any other."""
    table = log_table(tokenizer, rest).expand(len(tokenizer), -1).clone()
    for text, own in probs.items():
        table[ByteVocabulary(tokenizer).ids_of[text.encode()][0]] = log_table(tokenizer, own)
    return bigram(table, tokenizer)
