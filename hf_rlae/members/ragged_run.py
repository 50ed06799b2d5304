"""Batched forward passes over ragged rows, which advance by different numbers of tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from hf_rlae.members.compiled_steps import StaticCaches, compiled_step, step_columns
from hf_rlae.members.hidden_states import RaggedStates
from hf_rlae.members.member import Member
from hf_rlae.members.paths import Path, PathOutput
from hf_rlae.members.ragged_cache import RaggedCache, WritePlan, plan_columns, shared_columns
from hf_rlae.members.shared_run import accepted_arguments, captured_head_input
from hf_rlae.transfers import upload

_LEAST_SAVED = 128
"""Number of padding cells (one column of one row) that a second pass must save on a CPU. Source: ours, measured."""
_LEAST_SAVED_ELSEWHERE = 4096
"""The same for other devices, where a pass costs more and a cell less. Source: ours, not measured."""


@dataclass(frozen=True)
class _Pass:
    """One forward pass over some rows.

    Attributes:
        rows (`Sequence[int]`): the R row numbers.
        logits (`torch.Tensor` of shape `(R, columns, V_m)`), hidden (`torch.Tensor` of shape `(R, columns, H)` or
            `None`): outputs of the last columns; there may be more columns than requested.
    """

    rows: Sequence[int]
    logits: torch.Tensor
    hidden: torch.Tensor | None

    @property
    def places(self) -> dict[int, int]:
        """The index of each row in the tensors."""
        return {row: place for place, row in enumerate(self.rows)}


class BatchRunner:
    """Batched forward passes over ragged rows, with explicit positions and a 4-D mask.

    A step takes one forward pass, or two if only a few rows are long.

    Args:
        member (`Member`): the member whose model is run.
        hidden_tokens (`int`, defaults to 0): which hidden states are returned: 0 for none, 1 for that of the last
            token, n > 1 for that of the last token and the mean over the newest n.

    Attributes:
        static (`StaticCaches` or `None`): set before anything is read, the cache has a fixed capacity, and steps of few
            columns have fixed shapes and can be compiled.
    """

    kind = "batched"
    static: StaticCaches | None = None

    def __init__(self, member: Member, hidden_tokens: int = 0) -> None:
        self.member = member
        self.hidden_tokens = hidden_tokens
        self.cache = RaggedCache()
        self.states = RaggedStates(hidden_tokens)
        self.forward_calls = 0
        self._device = member.device
        self._hidden_size = member.hidden_size
        self._least_saved: float = _LEAST_SAVED if self._device.type == "cpu" else _LEAST_SAVED_ELSEWHERE
        if _turns_by_longest(member.config):
            self._least_saved = math.inf
        # on a CPU a mask costs little, and without one sums round differently
        self._may_leave_masks_out = self._device.type != "cpu" and _sees_all_with_sdpa(member.config)

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """Reads each row's path; rows with `None` do not change.

        If it saves enough padding, rows with many ids read their first ids in a separate pass, so that the pass over
        all rows is no wider than most rows need.

        Args:
            paths (`Sequence[Path | None]`): one per row of the batch.

        Returns:
            `PathOutput`: the outputs of all paths.
        """
        feed = [() if path is None else path.after(path.keep) for path in paths]
        keep = [0 if path is None else path.keep for path in paths]
        wants = [0 if path is None else path.want for path in paths]
        # A pass over some rows copies their caches (`index_select` in `RaggedLayer.update`). One cell costs about
        # `_hidden_size` times as much as copying one cache index, so this is the cost of a copied row in cells.
        copied = self.cache.length / self._hidden_size
        width = shared_columns([len(ids) for ids in feed], self._least_saved, copied)
        before = self._read_heads(feed, keep, wants, width)  # afterwards no row has more than `width` ids left
        is_step = self.cache.columns is not None and self.cache.length > 0 and step_columns(width) is not None
        running = list(range(len(feed))) if is_step else self._worth_running(feed, width, copied)
        last = self._forward(
            running,
            [keep[row] for row in running],
            [feed[row] for row in running],
            len(feed),
            min(max(wants), width),
            is_step,
        )
        if all(wants[row] == 1 for row in running):
            return PathOutput(last.logits[:, -1], None if last.hidden is None else last.hidden[:, -1])
        return _wanted(wants, width, before, last)

    def _read_heads(
        self, feed: list[tuple[int, ...]], keep: list[int], wants: Sequence[int], width: int
    ) -> _Pass | None:
        """Reads the first ids of rows with more than `width` ids in a separate pass; changes `feed` and `keep`."""
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
        """The rows of the last pass: those with new ids, or all rows if leaving the others out saves too little."""
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
        is_step: bool = False,
    ) -> _Pass:
        """One pass over some of `batch` rows: reads `feed` after `keep` ids, returns the last `wanted` columns."""
        member = self.member
        if not self.cache.length and self.static is not None and self.static.is_for(member):
            self.cache = RaggedCache(self.static.columns)
        columns = (step_columns(max(map(len, feed))) or 0) if is_step else 0
        ids, positions, plan = plan_columns(keep, feed, self._device, rows, batch, columns)
        length = plan.length
        if is_step:
            plan = self.cache.fixed(plan)
        compiled = self.static.compiled(member, self.cache) if is_step and self.static is not None else None
        self.cache.plan = plan
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": self._mask(positions, plan),
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if "logits_to_keep" in accepted_arguments(type(member.model).forward):
            arguments["logits_to_keep"] = ids.shape[1] if self.hidden_tokens > 1 else wanted
        num_logits = wanted if self.hidden_tokens > 1 else 0
        with (
            captured_head_input(member, self.hidden_tokens > 0, num_logits) as captured,
            compiled_step(member, compiled, columns),
        ):
            logits = member.model(**arguments, return_dict=True).logits
        self.forward_calls += 1
        self.cache.length = length
        hidden = captured[-1] if captured else None
        if hidden is not None and self.hidden_tokens > 1:
            self.states.write(hidden, plan)
            hidden = self.states.seen(plan, wanted)
        return _Pass(rows, logits, None if hidden is None else hidden.to(logits.device))

    def _mask(self, positions: torch.Tensor, plan: WritePlan) -> Any:
        """The mask of a pass; `None` for single columns of even rows.

        With a mask, transformers copies keys and values for grouped heads on CUDA, and flash attention is not possible.
        """
        if self._may_leave_masks_out and plan.start is not None and positions.shape[1] == 1:
            return None
        return _masks(self.member, positions, plan.length)

    def ahead(self) -> BatchRunner:
        """See `Runner`."""
        twin = BatchRunner(self.member, hidden_tokens=1)
        twin.cache = copy.deepcopy(self.cache)
        return twin

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        rows = upload(rows, self._device)
        self.cache.reorder_cache(cast(torch.LongTensor, rows))
        self.states.reorder(rows)

    def reset(self) -> None:
        """Drops everything that was read."""
        self.cache = RaggedCache()  # a static one is made when rows are read again
        self.states = RaggedStates(self.hidden_tokens)


def _wanted(wants: Sequence[int], width: int, before: _Pass | None, last: _Pass) -> PathOutput:
    """The outputs of the last `want` columns of all rows, concatenated.

    Args:
        wants (`Sequence[int]`): number of last columns per row.
        width (`int`): number of columns of the last pass; earlier columns are in the pass before.
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

    sizes = [len(rows), len(back), len(early_rows), len(early_back), len(order)]
    sent = upload(torch.tensor([*rows, *back, *early_rows, *early_back, *order]), last.logits.device).split(sizes)

    def picked(of_last: torch.Tensor, of_before: torch.Tensor | None) -> torch.Tensor:
        found = of_last[sent[0], sent[1]]
        if of_before is None or not early_rows:
            return found
        first = of_before[sent[2], sent[3]]
        # after the others and reversed, so that -1, -2 and so on are their indices (see `order`)
        return torch.cat([found, first.flip(0)])[sent[4]]

    logits = picked(last.logits, None if before is None else before.logits)
    if last.hidden is None:
        return PathOutput(logits, None)
    return PathOutput(logits, picked(last.hidden, None if before is None else before.hidden))


def _turns_by_longest(config: Any) -> bool:
    """Whether the rotary frequencies of all tokens of a pass depend on the longest row (longrope, dynamic)."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope.get("rope_type"), *(value.get("rope_type") for value in rope.values() if isinstance(value, dict))]
    return any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds)


def _sees_all_with_sdpa(config: Any) -> bool:
    """Whether every layer of a model sees all tokens, by `scaled_dot_product_attention`, which needs no mask for it."""
    limits = ("sliding_window", "attention_chunk_size")
    return getattr(config, "_attn_implementation", "sdpa") == "sdpa" and not any(
        getattr(config, limit, None) for limit in limits
    )


def _masks(member: Member, positions: torch.Tensor, length: int) -> Any:
    """The 4-D mask, or one mask per layer type, from the positions alone: index `j` of a row holds its token `j`."""
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
