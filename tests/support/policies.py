"""States and encoders for tests of policies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2Model

from hf_rlae import PolicyState
from hf_rlae.policies import MemberObservation, PromptScores
from tests.support.tokenizers import byte_level_bpe, deberta_v2

SIZES = (32, 48)
"""Hidden sizes of two imaginary members."""


def random_state(
    rows: int = 3,
    sizes: Sequence[int] = SIZES,
    vocab_sizes: Sequence[int] = (50, 70),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    text: Sequence[str] | None = None,
    pools: bool = True,
    **options: Any,
) -> PolicyState:
    """A state of `rows` rows with random logits and hidden states of each member, and with their means if it pools."""
    generator = torch.Generator().manual_seed(seed)
    seen = [
        MemberObservation(
            (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype),
            (2 * torch.randn(rows, 2 * size if pools else size, generator=generator)).to(dtype),
        )
        for size, vocabulary in zip(sizes, vocab_sizes, strict=True)
    ]
    texts = list(text or [f"Once upon a time {seed} " + "and then " * (row + 1) for row in range(rows)])
    return PolicyState(
        len(sizes), torch.zeros(rows, dtype=torch.long), torch.device("cpu"), lambda: texts, lambda: seen, **options
    )


def row_of(state: PolicyState, row: int) -> PolicyState:
    """The state of one row alone."""
    seen = [
        MemberObservation(entry.logits[row : row + 1], None if entry.hidden is None else entry.hidden[row : row + 1])
        for entry in state.observations
    ]
    return PolicyState(
        state.num_members, state.span_index[row : row + 1], state.device, lambda: [state.text[row]], lambda: seen
    )


def scored(logps: Sequence[Sequence[float]], num_bytes: Sequence[Sequence[int]], num_tokens: Any) -> PolicyState:
    """A state with these scores of its prompts."""
    table = torch.tensor(logps)
    scores = PromptScores(table, torch.tensor(num_bytes).float(), torch.tensor(num_tokens).float())
    return PolicyState(
        table.shape[1],
        torch.zeros(len(table), dtype=torch.long),
        table.device,
        lambda: [""] * len(table),
        lambda: [],
        score_prompts=lambda: scores,
    )


@cache
def encoder() -> tuple[BertModel, Any]:
    """A tiny random text encoder with its tokenizer."""
    tokenizer = byte_level_bpe()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(config).eval(), tokenizer


@cache
def deberta() -> tuple[DebertaV2Model, Any]:
    """The encoder of the paper's policies (DeBERTa-V3) in small, random, with its tokenizer."""
    tokenizer = deberta_v2()
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DebertaV2Model(config).eval(), tokenizer


def assert_same_parameters(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Law: two modules have bit-exactly equal parameters and buffers."""
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
