"""Each member's own log-probabilities of completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_rlae.errors import present
from hf_rlae.policies import PolicyState, UniformPolicy, rescaled

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_MAX_CELLS = 2**24
"""Maximum number of probabilities in memory; rows are scored in parts."""


class _KnownWeights:
    """A policy that returns given weights.

    Args:
        span_weights (`torch.FloatTensor` of shape `(B, S, M)`): the weights of every row and span.
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
    """The log-probabilities of all completion tokens by each member, by teacher forcing.

    If members share a tokenizer, this takes one forward pass per member. If tokenizers differ, the members read the
    text column by column, because the readings of a member depend on the weights.

    Args:
        ensemble (`EnsembleForCausalLM`): the ensemble; its policy is not called.
        input_ids (`torch.LongTensor` of shape `(B, L + T)`), attention_mask (the same shape): prompts, padded on the
            left, and completions, padded on the right; 1 = keep.
        prompt_columns (`int`): width of the prompts, L.
        inputs (`dict[str, torch.Tensor]`, *optional*): `member_input_ids` and `member_attention_mask` of chats.
        span_weights (`torch.FloatTensor` of shape `(B, S, M)`, *optional*): the weights of every span; `None` = equal
            weights. A member without weight in a span is not run there.

    Returns:
        `torch.FloatTensor` of shape `(B, T, M)`: log-probabilities in nats; minus infinity if a member cannot propose
        the token, NaN if it was not run.
    """
    size = ensemble.engine.vocab_size * len(ensemble.members) * max(input_ids.shape[1] - prompt_columns, 1)
    rows = max(1, _MAX_CELLS // size)
    chats = {name: value for name, value in (inputs or {}).items() if name.startswith("member_")}
    scale = ensemble.engine.weight_scale  # `span_weights` are those of tokens, and a policy's are scaled
    given = span_weights if span_weights is None or scale is None else rescaled(span_weights, 1 / scale)
    found = []
    for start in range(0, len(input_ids), rows):
        part = slice(start, start + rows)
        policy = UniformPolicy() if given is None else _KnownWeights(given[part])
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
        scores = present(cache.trace.pending, "the members' scores of the text")
        found.append(scores.of(ids[:, prompt_columns:]))
    return torch.cat(found)
