"""Texts that end are not run on: when enough of a batch have ended, `generate` goes on with the others alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.trainers.rlae.span_recorder import SpanRecorder

KEPT_SHARE = 0.75
"""A wave ends when no more than this share of its texts goes on. Source: ours."""
MIN_ROWS = 16
"""A wave of fewer texts goes on to its end: a smaller batch would hardly be faster. Source: ours."""


@dataclass
class Written:
    """What N texts are. Axes: N rows, T tokens, S spans, M members.

    Attributes:
        completion_ids (`torch.LongTensor` of shape `(N, T)`): union ids, padded on the right.
        span_weights (`torch.FloatTensor` of shape `(N, S, M)`): that were mixed with, after cutting; 0 where a text had
            ended.
        member_logps (`torch.FloatTensor` of shape `(N, T, M)`, *optional*): in nats; NaN where a member was not run.
    """

    completion_ids: torch.Tensor
    span_weights: torch.Tensor
    member_logps: torch.Tensor | None


class Thinning(StoppingCriteria):
    """Stops all texts once few enough are left; `generate` then returns.

    Args:
        end_ids (`torch.LongTensor` of shape `(E,)`): that end a text.
        columns (`int`): of the prompts.
    """

    def __init__(self, end_ids: torch.Tensor, columns: int) -> None:
        self.end_ids = end_ids
        self.columns = columns
        self._ended: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Whether to stop, `(B,)`: for all rows the same."""
        new = torch.isin(input_ids[:, -1], self.end_ids)
        self._ended = new if self._ended is None else self._ended | new
        rows = len(input_ids)
        stops = rows >= MIN_ROWS and rows - int(self._ended.sum()) <= KEPT_SHARE * rows
        return torch.full_like(self._ended, stops)  # type: ignore[return-value]


def end_ids_of(ensemble: EnsembleForCausalLM) -> torch.Tensor:
    """The union ids that end a text, of shape `(E,)`, on the ensemble's device."""
    ends = ensemble.generation_config.eos_token_id
    return torch.tensor([ends] if isinstance(ends, int) else list(ends or []), device=ensemble.device)


def write_in_waves(
    ensemble: EnsembleForCausalLM,
    cache: EnsembleCache,
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int,
    recorder: SpanRecorder,
    options: Callable[[torch.Tensor], dict[str, Any]],
) -> Written:
    """Lets an ensemble continue prompts; what it writes is what one `generate` of all rows would have written.

    A batch costs a pass of all members for all its rows until the last text ends. Here a call of `generate` returns
    when a quarter of its texts have ended, and the next one goes on with the others, with their caches and inside their
    spans. Where members are drawn there is one call, since rows may share a draw.

    Args:
        ensemble (`EnsembleForCausalLM`): that writes; it asks the recorder.
        cache (`EnsembleCache`): new.
        inputs: of `generate`, `input_ids` and `attention_mask` of shape `(N, L)` among them.
        max_new_tokens (`int`): a text has at most.
        recorder (`SpanRecorder`): is told which texts go on.
        options (callable): gives further arguments of `generate` for the rows `(R,)` that go on.
    """
    columns, ends = inputs["input_ids"].shape[1], end_ids_of(ensemble)
    rows = torch.arange(len(inputs["input_ids"]))
    parts: list[tuple[torch.Tensor, Any, int]] = []
    while True:
        read = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList(
            [] if ensemble.config.draw is not None and cache.may_draw else [Thinning(ends, read)]
        )
        out: Any = ensemble.generate(  # type: ignore[call-overload]
            **inputs,
            past_key_values=cache,
            max_new_tokens=max_new_tokens - (read - columns),
            num_beams=1,
            return_dict_in_generate=True,
            stopping_criteria=criteria,
            **options(rows),
        )
        parts.append((rows, out, read - columns))
        written = out.sequences[:, columns:]
        live = (~torch.isin(written, ends).any(1)).nonzero()[:, 0]
        if not len(live) or written.shape[1] >= max_new_tokens:
            return _joined(ensemble, parts, columns)
        cache.keep_rows(live)
        rows = rows[live.cpu()]
        mask = inputs["attention_mask"][live]
        ones = mask.new_ones(len(live), out.sequences.shape[1] - read)
        recorder.rows = rows
        inputs = {"input_ids": out.sequences[live], "attention_mask": torch.cat([mask, ones], dim=1)}


def _joined(ensemble: EnsembleForCausalLM, parts: list[tuple[torch.Tensor, Any, int]], columns: int) -> Written:
    _, last, _ = parts[-1]
    count, tokens = len(parts[0][0]), last.sequences.shape[1] - columns
    members, length = len(ensemble.members), ensemble.config.span_length
    padding: Any = ensemble.generation_config.pad_token_id
    if padding is None:  # as `generate` does, which has filled up its rows in this way
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
    return Written(ids, weights, logps)
