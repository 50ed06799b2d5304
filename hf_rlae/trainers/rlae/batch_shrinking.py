"""Generation with a shrinking batch: when enough completions have ended, `generate` continues with the others alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList, StopStringCriteria

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.trainers.rlae.span_recorder import SpanRecorder
from hf_rlae.trainers.stop_strings import NEVER, Endings
from hf_rlae.vocabulary import token_ids

KEPT_SHARE = 0.75
"""The batch shrinks when at most this share of its completions is unfinished. Source: ours."""
MIN_ROWS = 16
"""A batch of fewer rows does not shrink: a smaller one would hardly be faster. Source: ours."""


@dataclass
class Completions:
    """N completions. Axes: N rows, T tokens, S spans, M members.

    Attributes:
        completion_ids (`torch.LongTensor` of shape `(N, T)`): union ids, padded on the right.
        lengths (`torch.LongTensor` of shape `(N,)`): number of tokens; `NEVER` if a completion has not ended by itself.
        span_weights (`torch.FloatTensor` of shape `(N, S, M)`): the weights in the mixture, after small ones are
            cut; 0 past the end of a completion.
        member_logps (`torch.FloatTensor` of shape `(N, T, M)`, *optional*): in nats; NaN where a member did not run.
        drawn_members (`torch.LongTensor` of shape `(N, T)`, *optional*): the only member that ran for each token, if
            members were drawn.
    """

    completion_ids: torch.Tensor
    lengths: torch.Tensor
    span_weights: torch.Tensor
    member_logps: torch.Tensor | None
    drawn_members: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """The tokens up to and including the one that ends a completion, `(N, T)`."""
        return torch.arange(self.completion_ids.shape[1], device=self.lengths.device) < self.lengths[:, None]


class EnoughEnded(Endings):
    """Besides ending rows, stops all rows once enough of them have ended, so that `generate` returns.

    Args:
        end_ids, stop: see [`Endings`].
        shrinks (`bool`): `False` if only the last row that ends may end the call.
    """

    def __init__(self, end_ids: torch.Tensor, stop: StopStringCriteria | None, shrinks: bool) -> None:
        super().__init__(end_ids, stop)
        self.shrinks = shrinks

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows stop, `(B,)`: those that have ended, or all."""
        ended = super().__call__(input_ids, scores)
        rows = len(ended)
        if self.shrinks and rows >= MIN_ROWS and rows - int(ended.sum()) <= KEPT_SHARE * rows:
            return torch.ones_like(ended)  # type: ignore[return-value]
        return ended


def end_ids_of(ensemble: EnsembleForCausalLM) -> torch.Tensor:
    """The union ids that end a completion, of shape `(E,)`, on the ensemble's device."""
    return torch.tensor(token_ids(ensemble.generation_config.eos_token_id), device=ensemble.device)


def generate_shrinking(
    ensemble: EnsembleForCausalLM,
    cache: EnsembleCache,
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int,
    recorder: SpanRecorder,
    options: Callable[[torch.Tensor], dict[str, Any]],
    stop: StopStringCriteria | None = None,
) -> Completions:
    """Continues prompts; the completions are those of one `generate` call with all rows.

    One call runs all rows through all members until the last completion ends. Here `generate` returns when a quarter of
    its completions have ended, and the next call continues the others with their caches and within their spans. If
    members are drawn there is only one call, since rows may share a draw.

    Args:
        ensemble (`EnsembleForCausalLM`): generates; its policy is the recorder.
        cache (`EnsembleCache`): an empty one.
        inputs: of `generate`, with `input_ids` and `attention_mask` of shape `(N, L)`.
        max_new_tokens (`int`): maximum number of tokens of a completion.
        recorder (`SpanRecorder`): its `rows` are set to the rows of each call.
        options (callable): returns further arguments of `generate` for the rows `(R,)` of a call.
        stop (`StopStringCriteria`, *optional*): ends completions at stop strings.
    """
    columns, ends = inputs["input_ids"].shape[1], end_ids_of(ensemble)
    rows = torch.arange(len(inputs["input_ids"]))
    lengths = torch.full((len(rows),), NEVER, device=ends.device)
    parts: list[tuple[torch.Tensor, Any, int]] = []
    while True:
        read = inputs["input_ids"].shape[1]
        is_drawn = ensemble.config.draw is not None and cache.may_draw  # rows may share a draw
        endings = EnoughEnded(ends, stop, shrinks=not is_drawn)
        out: Any = ensemble.generate(  # type: ignore[call-overload]
            **inputs,
            past_key_values=cache,
            max_new_tokens=max_new_tokens - (read - columns),
            num_beams=1,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([endings]),
            **options(rows),
        )
        parts.append((rows, out, read - columns))
        is_ended = endings.lengths != NEVER
        lengths[rows.to(lengths.device)] = torch.where(is_ended, endings.lengths + (read - columns), NEVER)
        unfinished = (~is_ended).nonzero()[:, 0]
        if not len(unfinished) or out.sequences.shape[1] - columns >= max_new_tokens:
            return _joined(ensemble, parts, columns, lengths)
        cache.keep_rows(unfinished)
        rows = rows[unfinished.cpu()]
        mask = inputs["attention_mask"][unfinished]
        ones = mask.new_ones(len(unfinished), out.sequences.shape[1] - read)
        recorder.rows = rows
        inputs = {"input_ids": out.sequences[unfinished], "attention_mask": torch.cat([mask, ones], dim=1)}


def _joined(
    ensemble: EnsembleForCausalLM, parts: list[tuple[torch.Tensor, Any, int]], columns: int, lengths: torch.Tensor
) -> Completions:
    _, last, _ = parts[-1]
    count, tokens = len(parts[0][0]), last.sequences.shape[1] - columns
    members, length = len(ensemble.members), ensemble.config.tokens_per_weights
    padding: Any = ensemble.generation_config.pad_token_id
    if padding is None:  # what `generate` has padded its rows with
        padding = next(iter(end_ids_of(ensemble).tolist()), 0)
    ids = last.sequences.new_full((count, tokens), padding)
    weights = last.span_weights.new_zeros(count, -(-tokens // length), members)
    logps = last.member_logps.new_full((count, tokens, members), torch.nan)
    for rows, out, before in parts:
        rows = rows.to(ids.device)
        ids[rows, before : out.sequences.shape[1] - columns] = out.sequences[:, columns + before :]
        logps[rows, before : out.member_logps.shape[1]] = out.member_logps[:, before:]
        spans = out.span_starts.to(weights.device) // length
        weights[rows[:, None], spans[None]] = out.span_weights
    written = Completions(ids, lengths, weights, logps, last.drawn_members)
    ids.masked_fill_(~written.mask, padding)  # without end ids `generate` goes on past stop strings
    return written
