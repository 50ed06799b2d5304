"""Outputs of `generate` with the weights of every span and each member's log-probability of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


@dataclass
class EnsembleGenerateOutput(GenerateDecoderOnlyOutput):
    """`GenerateDecoderOnlyOutput` with a trace of the ensemble.

    Attributes:
        span_weights (`torch.FloatTensor` of shape `(B, S, M)`): the weights in the mixture at the first token of every
            span (with `EnsembleConfig(weight_unit="byte")` the rescaled ones); 0 for members that have dropped out.
        span_starts (`torch.LongTensor` of shape `(S,)`): the index of the first completion token of each span, from 0.
        member_logps (`torch.FloatTensor` of shape `(B, T, M)`): each member's own log-probability of every token, in
            nats, after warping with `EnsembleConfig(warp="members")`; NaN if the member had no weight or was not run,
            minus infinity if it could not propose the token.
        drawn_members (`torch.LongTensor` of shape `(B, T)`, *optional*): the member from which each token was sampled,
            if members are drawn (`EnsembleConfig.draw`).
    """

    span_weights: torch.FloatTensor | None = None
    span_starts: torch.LongTensor | None = None
    member_logps: torch.FloatTensor | None = None
    drawn_members: torch.LongTensor | None = None


@dataclass
class EnsembleGenerateBeamOutput(GenerateBeamDecoderOnlyOutput):
    """`GenerateBeamDecoderOnlyOutput` with a trace of the ensemble (see `EnsembleGenerateOutput`)."""

    span_weights: torch.FloatTensor | None = None
    span_starts: torch.LongTensor | None = None
    member_logps: torch.FloatTensor | None = None


def attach_trace(
    model: EnsembleForCausalLM, result: Any, cache: EnsembleCache
) -> EnsembleGenerateOutput | EnsembleGenerateBeamOutput:
    """Adds the trace of one call to the output of transformers' `generate`."""
    sequences = result.sequences
    start = cache.start or 0
    steps = sequences.shape[1] - start
    length = model.config.tokens_per_weights
    records = [r for r in cache.spans.records if r.span * length < steps] if cache.has_spans else []
    starts = torch.tensor([record.span * length for record in records], dtype=torch.long)
    beam_indices = getattr(result, "beam_indices", None)
    if beam_indices is None:
        cache.trace.settle(sequences, sequences.shape[1])
        by_column = dict(cache.trace.member_logps)
        weights = [record.weights for record in records]
        logps = [by_column.get(start + step) for step in range(steps)]
        kind: type[Any] = EnsembleGenerateOutput
    else:
        rows = beam_indices.clamp(min=0)
        weights = [record.weights[rows[:, record.span * length]] for record in records]
        logps = _beam_logps(cache, sequences, beam_indices, start, steps)
        kind = EnsembleGenerateBeamOutput
    members = len(model.members)
    missing = torch.full((sequences.shape[0], members), torch.nan, device=sequences.device)
    fields = {name: result[name] for name in result}
    if cache.drawn:
        fields["drawn_members"] = torch.stack([members for _, members in cache.drawn], dim=1).to(sequences.device)
    return kind(
        **fields,
        span_weights=torch.stack(weights, dim=1).clone() if weights else missing[:, None][:, :0],
        span_starts=starts,
        member_logps=torch.stack([missing if entry is None else entry for entry in logps], dim=1)
        if logps
        else missing[:, None][:, :0],
    )


def _beam_logps(
    cache: EnsembleCache, sequences: torch.Tensor, beam_indices: torch.Tensor, start: int, steps: int
) -> list[torch.Tensor | None]:
    """The members' log-probabilities of the returned beams, gathered from the rows of each step; NaN after the end."""
    values: list[torch.Tensor | None] = []
    for step in range(steps):
        if step >= beam_indices.shape[1]:
            values.append(None)
            continue
        parents = beam_indices[:, step].long()
        known = cache.trace.of_beams(start + step, sequences[:, start + step], parents.clamp(min=0))
        values.append(None if known is None else known.masked_fill((parents < 0)[:, None], torch.nan))
    return values
