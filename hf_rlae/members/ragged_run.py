"""Running a member on rows that advance by different numbers of tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from hf_rlae.members.hidden_states import RaggedStates, with_means
from hf_rlae.members.member import Member
from hf_rlae.members.ragged_cache import RaggedCache, plan_columns, shared_columns
from hf_rlae.members.recurrence import returned_state
from hf_rlae.members.shared_run import accepted_arguments, captured_head_input

_LEAST_SAVED = 128
"""Cells (a row's column) of padding for which rows are run apart on a CPU. Source: ours, measured."""
_LEAST_SAVED_ELSEWHERE = 4096
"""The same on other devices, where a pass costs more and a cell less. Source: ours, not measured."""


class Chain:
    """The ids of a row that never change again: a linked list that rows share.

    Attributes:
        before (`Chain` or `None`), ids (`tuple[int, ...]`): what came first, and what follows.
        length (`int`): number of all ids.
    """

    __slots__ = ("before", "ids", "length")
    length: int

    def __init__(self, before: Chain | None = None, ids: tuple[int, ...] = ()) -> None:
        self.before = before
        self.ids = ids
        self.length = len(ids) + (before.length if before is not None else 0)

    def plus(self, ids: tuple[int, ...]) -> Chain:
        """The chain with further ids."""
        return Chain(self, ids) if ids else self

    def after(self, position: int) -> tuple[int, ...]:
        """The ids from `position` on; costs as much as there are."""
        parts = []
        link: Chain | None = self
        while link is not None and link.length > position:
            start = link.length - len(link.ids)
            parts.append(link.ids[max(position - start, 0) :])
            link = link.before
        return tuple(i for part in reversed(parts) for i in part)


@dataclass(frozen=True)
class Path:
    """The ids that one row is to be read along.

    Attributes:
        settled (`Chain`): the ids that never change again.
        ids (`tuple[int, ...]`): the ids after those.
        keep (`int`): how many ids, from the beginning, are known to be in the row's cache already.
        want (`int`): for how many of the last ids logits are wanted.
    """

    settled: Chain
    ids: tuple[int, ...]
    keep: int
    want: int

    @property
    def length(self) -> int:
        """All ids of the row."""
        return self.settled.length + len(self.ids)

    def after(self, position: int) -> tuple[int, ...]:
        """The ids from `position` on."""
        inside = position - self.settled.length
        return self.ids[inside:] if inside >= 0 else self.settled.after(position) + self.ids


@dataclass(frozen=True)
class PathOutput:
    """What a model said after the wanted ids of all paths, row by row: `want` of each path.

    Attributes:
        logits (`torch.Tensor` of shape `(R, V_m)`), hidden (`torch.Tensor` of shape `(R, H_m)` or `None`): with the
            means of several tokens beside the last hidden states, where these are wanted, `(R, 2 H_m)`.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


@dataclass(frozen=True)
class _Pass:
    """One forward pass over some rows.

    Attributes:
        rows (`Sequence[int]`): which ones, R of them.
        logits (`torch.Tensor` of shape `(R, columns, V_m)`), hidden (`torch.Tensor` of shape `(R, columns, H)` or
            `None`): of the last columns; there may be more of them than were asked for.
    """

    rows: Sequence[int]
    logits: torch.Tensor
    hidden: torch.Tensor | None

    @property
    def places(self) -> dict[int, int]:
        """Where each row is."""
        return {row: place for place, row in enumerate(self.rows)}


class BatchRunner:
    """Batched forward passes over ragged rows, with explicit positions and a 4-D mask: one, or two where few are long.

    Args:
        member (`Member`): whose model is run.
        hidden_tokens (`int`, defaults to 0): of how many of the newest tokens hidden states are wanted: 0 of none, 1 of
            the last one, n > 1 of the last one with the mean of the newest n beside it.
    """

    kind = "batched"

    def __init__(self, member: Member, hidden_tokens: int = 0) -> None:
        self.member = member
        self.hidden_tokens = hidden_tokens
        self.cache = RaggedCache()
        self.states = RaggedStates(hidden_tokens)
        self.forward_calls = 0
        self._least_saved: float = _LEAST_SAVED if member.device.type == "cpu" else _LEAST_SAVED_ELSEWHERE
        if _turns_by_longest(member.config):
            self._least_saved = math.inf

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """Reads each row's path; `None` rows stay as they are.

        Rows with many ids read the first of them in a pass of their own where that saves enough padding, so that the
        pass of all rows is no wider than most of them need.
        """
        feed = [() if path is None else path.after(path.keep) for path in paths]
        keep = [0 if path is None else path.keep for path in paths]
        wants = [0 if path is None else path.want for path in paths]
        # what the cache of a row that is run apart costs, in cells: copying an index is about a cell by the width
        copied = self.cache.length / self.member.hidden_size
        width = shared_columns([len(ids) for ids in feed], self._least_saved, copied)
        before = self._read_heads(feed, keep, wants, width)
        running = self._worth_running(feed, width, copied)
        last = self._forward(
            running, [keep[row] for row in running], [feed[row] for row in running], len(feed), min(max(wants), width)
        )
        if all(wants[row] == 1 for row in running):
            return PathOutput(last.logits[:, -1], None if last.hidden is None else last.hidden[:, -1])
        return _wanted(wants, width, before, last)

    def _read_heads(
        self, feed: list[tuple[int, ...]], keep: list[int], wants: Sequence[int], width: int
    ) -> _Pass | None:
        """Reads the first ids of rows with more than `width` in a pass of their own; changes `feed` and `keep`."""
        long = [row for row, ids in enumerate(feed) if len(ids) > width]
        if not long:
            return None
        heads = [feed[row][:-width] for row in long]
        wanted = max(1, *(wants[row] - width for row in long))
        before = self._forward(long, [keep[row] for row in long], heads, len(feed), wanted)
        for row, ids in zip(long, heads, strict=True):
            keep[row] += len(ids)
            feed[row] = feed[row][-width:]
        return before

    def _worth_running(self, feed: Sequence[tuple[int, ...]], width: int, copied: float) -> list[int]:
        """The rows of the last pass: those with new ids, or all if leaving the others out would save too little."""
        running = [row for row, ids in enumerate(feed) if ids]
        saved, cost = (len(feed) - len(running)) * width, self._least_saved + len(running) * copied
        return list(range(len(feed))) if saved < cost else running

    def _forward(
        self,
        rows: Sequence[int],
        keep: Sequence[int],
        feed: Sequence[Sequence[int]],
        batch: int,
        wanted: int,
    ) -> _Pass:
        """One pass over some of `batch` rows, which read `feed` behind `keep` ids; of the last columns `wanted`."""
        member = self.member
        ids, positions, plan = plan_columns(keep, feed, member.device, rows, batch)
        self.cache.plan = plan
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": _masks(member, positions, plan.length),
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if "logits_to_keep" in accepted_arguments(type(member.model).forward):
            arguments["logits_to_keep"] = ids.shape[1] if self.hidden_tokens > 1 else wanted
        answered = wanted if self.hidden_tokens > 1 else 0
        with member.active(), captured_head_input(member, self.hidden_tokens > 0, answered) as caught:
            logits = member.model(**arguments, return_dict=True).logits
        self.forward_calls += 1
        self.cache.length = plan.length
        hidden = caught[-1] if caught else None
        if hidden is not None and self.hidden_tokens > 1:
            self.states.write(hidden, plan)
            hidden = self.states.seen(plan, wanted)
        return _Pass(rows, logits, None if hidden is None else hidden.to(logits.device))

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was."""
        self.cache.reorder_cache(cast(torch.LongTensor, rows))
        self.states.reorder(rows)

    def reset(self) -> None:
        """Forgets everything."""
        self.cache = RaggedCache()
        self.states = RaggedStates(self.hidden_tokens)


@dataclass(frozen=True)
class _RowState:
    """What a row's model knows after its first ids.

    Attributes:
        length (`int`): of how many.
        cache (`dict[str, Any]`): what the model goes on from; never written to.
        newest (`torch.Tensor` of shape `(n, H_m)`, *optional*): the newest hidden states, where means are wanted.
    """

    length: int
    cache: dict[str, Any]
    newest: torch.Tensor | None


class RowRunner:
    """One forward pass a row, with the model's own cache: for models that cannot take a mask of their own.

    Recurrent states cannot go back, so the state after every run is kept for as long as a later path may begin
    there: the newest one within the settled ids, and those after it.

    Args:
        member (`Member`), hidden_tokens (`int`, defaults to 0): see `BatchRunner`.
    """

    kind = "rows"

    def __init__(self, member: Member, hidden_tokens: int = 0) -> None:
        self.member = member
        self.hidden_tokens = hidden_tokens
        self.forward_calls = 0
        self._states: dict[int, tuple[_RowState, ...]] = {}

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """Reads each row's path; `None` rows stay as they are."""
        logits, states = [], []
        for row, path in enumerate(paths):
            if path is None:
                continue
            row_logits, row_states = self._run_row(row, path)
            logits.append(row_logits)
            if row_states is not None:
                states.append(row_states)
        return PathOutput(torch.cat(logits), torch.cat(states) if states else None)

    def _run_row(self, row: int, path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
        usable = min(path.keep, path.length - path.want)
        known = [state for state in self._states.get(row, ()) if state.length <= usable]
        begin = known[-1] if known else _RowState(0, {}, None)
        cache = copy.deepcopy(begin.cache)
        ids = path.after(begin.length)
        at_once = begin.length == 0 or self.member.recurrence.reads_chunks
        pieces: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for piece in [ids] if at_once else [(i,) for i in ids]:
            cache, logits, states = self._forward(cache, piece, min(path.want, len(piece)))
            pieces.append((logits, states))
        hidden = [states for _, states in pieces if states is not None]
        newest: torch.Tensor | None = None
        if self.hidden_tokens > 1 and hidden:
            together = torch.cat(hidden if begin.newest is None else [begin.newest, *hidden])
            newest = together[-self.hidden_tokens :]
            hidden = [with_means(together[None], None, self.hidden_tokens, path.want)[0]]
        known.append(_RowState(path.length, cache, newest))
        settled = [state for state in known if state.length <= path.settled.length]
        self._states[row] = tuple(settled[-1:] + known[len(settled) :])
        logits = torch.cat([logits for logits, _ in pieces[-path.want :]])[-path.want :]
        return logits, torch.cat(hidden)[-path.want :] if hidden else None

    def _forward(
        self, cache: dict[str, Any], ids: Sequence[int], want: int
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]:
        member = self.member
        accepted = accepted_arguments(type(member.model).forward)
        arguments: dict[str, Any] = {**cache, "use_cache": True}
        arguments["input_ids"] = torch.tensor([list(ids)], dtype=torch.long, device=member.device)
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = len(ids) if self.hidden_tokens > 1 else want
        answered = want if self.hidden_tokens > 1 else 0
        with member.active(), captured_head_input(member, self.hidden_tokens > 0, answered) as caught:
            outputs = member.model(**arguments, return_dict=True)
        self.forward_calls += 1
        hidden = caught[-1][0] if caught else None
        if hidden is not None and not answered:
            hidden = hidden[-want:]
        return returned_state(outputs), outputs.logits[0, -want:], hidden

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was."""
        # states are never written to, so rows may share one
        self._states = {i: self._states[row] for i, row in enumerate(rows.tolist()) if row in self._states}

    def reset(self) -> None:
        """Forgets everything."""
        self._states.clear()


Runner = BatchRunner | RowRunner


def _wanted(wants: Sequence[int], width: int, before: _Pass | None, last: _Pass) -> PathOutput:
    """The wanted columns of all rows, one after the other.

    Args:
        wants (`Sequence[int]`): how many of its last columns each row wants.
        width (`int`): columns of the last pass; what a row wants beyond them was read before.
        before (`_Pass`, *optional*), last (`_Pass`): the passes.
    """
    early, late = {} if before is None else before.places, last.places
    rows: list[int] = []
    back: list[int] = []
    early_rows: list[int] = []
    early_back: list[int] = []
    order: list[int] = []
    for row, want in enumerate(wants):
        for distance in range(want, 0, -1):
            if distance > width:
                early_rows.append(early[row])
                early_back.append(width - distance)
                order.append(-len(early_rows))
            else:
                order.append(len(rows))
                rows.append(late[row])
                back.append(-distance)

    def picked(of_last: torch.Tensor, of_before: torch.Tensor | None) -> torch.Tensor:
        device = of_last.device
        found = of_last[torch.tensor(rows, device=device), torch.tensor(back, device=device)]
        if of_before is None or not early_rows:
            return found
        first = of_before[torch.tensor(early_rows, device=device), torch.tensor(early_back, device=device)]
        # behind the others and backwards, so that -1, -2 and so on are their places
        return torch.cat([found, first.flip(0)])[torch.tensor(order, device=device)]

    logits = picked(last.logits, None if before is None else before.logits)
    if last.hidden is None:
        return PathOutput(logits, None)
    return PathOutput(logits, picked(last.hidden, None if before is None else before.hidden))


def _turns_by_longest(config: Any) -> bool:
    """Whether a model turns all tokens of a pass by frequencies that depend on the longest row (longrope, dynamic)."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope.get("rope_type"), *(value.get("rope_type") for value in rope.values() if isinstance(value, dict))]
    return any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds)


def _masks(member: Member, positions: torch.Tensor, length: int) -> Any:
    """The 4-D mask, or one a layer type: index `j` of a row holds its token `j`, so positions say it all."""
    config = member.config
    indices = torch.arange(length, device=positions.device)
    causal = indices <= positions[..., None]
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)

    def finished(mask: torch.Tensor) -> torch.Tensor:
        mask = mask[:, None]
        if getattr(config, "_attn_implementation", "sdpa") == "sdpa":
            return mask
        zero = torch.zeros((), dtype=member.dtype, device=mask.device)
        return torch.where(mask, zero, torch.finfo(member.dtype).min)

    def of_kind(kind: str) -> torch.Tensor:
        if kind == "sliding_attention" and window:
            return finished(causal & (indices > positions[..., None] - window))
        if kind == "chunked_attention" and chunk:
            return finished(causal & (indices // chunk == (positions // chunk)[..., None]))
        return finished(causal)

    if len(kinds) > 1:
        return {kind: of_kind(kind) for kind in kinds}
    if kinds:
        return of_kind(next(iter(kinds)))
    return of_kind("sliding_attention" if window and getattr(config, "use_sliding_window", True) else "full")
