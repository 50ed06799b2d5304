"""Each member's own log-probabilities of finished texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_rlae.policies import PolicyState, UniformPolicy

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_MAX_CELLS = 2**24
"""Rows are scored in parts, so that no more probabilities than this are in memory at once."""


class _KnownWeights:
    """A policy whose weights are known beforehand.

    Args:
        span_weights (`torch.FloatTensor` of shape `(B, S, M)`): of every row and span.
    """

    observes_members = False

    def __init__(self, span_weights: torch.Tensor) -> None:
        self.span_weights = span_weights

    def __call__(self, state: PolicyState) -> torch.Tensor:
        rows = torch.arange(len(self.span_weights))
        return self.span_weights[rows, state.span_index]


@torch.no_grad()
def score_members(
    ensemble: EnsembleForCausalLM,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    prompt_columns: int,
    inputs: Mapping[str, torch.Tensor] | None = None,
    span_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities of all completion tokens by all members, by teacher forcing.

    Where members share a tokenizer this is one forward pass per member. Where tokenizers differ, the text is followed
    step by step: which readings a member keeps depends on who proposed a token, and so on the weights.

    Args:
        ensemble (`EnsembleForCausalLM`): whose members score; its policy is not asked.
        input_ids (`torch.LongTensor` of shape `(B, L + T)`), attention_mask (the same shape): prompts, padded on the
            left, and completions, padded on the right; 1 = keep.
        prompt_columns (`int`): L.
        inputs (*optional*): `member_input_ids` and `member_attention_mask` of chats.
        span_weights (`torch.FloatTensor` of shape `(B, S, M)`, *optional*): the weights of every span, held as they
            are; `None` = equal weights. Members without any weight in a span are not run there.

    Returns:
        `torch.FloatTensor` of shape `(B, T, M)`, in nats; minus infinity where a member cannot propose the token, NaN
        where it was not run.
    """
    size = ensemble.engine.vocab_size * len(ensemble.members) * max(input_ids.shape[1] - prompt_columns, 1)
    rows = max(1, _MAX_CELLS // size)
    chats = {name: value for name, value in (inputs or {}).items() if name.startswith("member_")}
    found = []
    for start in range(0, len(input_ids), rows):
        part = slice(start, start + rows)
        policy = UniformPolicy() if span_weights is None else _KnownWeights(span_weights[part])
        cache = ensemble.new_cache(record=True, policy=policy)
        ids = input_ids[part]
        ensemble(
            input_ids=ids[:, :-1],
            attention_mask=attention_mask[part, :-1],
            past_key_values=cache,
            prompt_length=prompt_columns,
            logits_to_keep=ids.shape[1] - prompt_columns,
            **{name: value[part] for name, value in chats.items()},
        )
        assert cache.trace.pending is not None
        found.append(cache.trace.pending.of(ids[:, prompt_columns:]))
    return torch.cat(found)
