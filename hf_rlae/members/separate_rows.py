"""Reads every row of a batch separately: for models that mix rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.errors import present
from hf_rlae.members.member import Member
from hf_rlae.members.shared_run import ReadsSharedColumns, Scores, SharedRun, distinct_rows, read_distinct


class SeparateRowsRun(ReadsSharedColumns):
    """Reads every row separately, without padding: for models that mix the rows of a batch.

    It has the interface of `SharedRun`; the logits of padded columns are 0.

    Args:
        member (`Member`), use_cache (`bool`), shares_prompts (`bool`), hidden_tokens (`int`): see `SharedRun`.
    """

    def __init__(self, member: Member, use_cache: bool, shares_prompts: bool = False, hidden_tokens: int = 1) -> None:
        self.member = member
        self.use_cache = use_cache
        self.shares_prompts = shares_prompts
        self.hidden_tokens = hidden_tokens
        self.rows: list[SharedRun] = []
        self._recording = False
        self._columns: list[list[int]] = []  # for each row, the columns that are not padding

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""
        return sum(row.forward_calls for row in self.rows)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> Scores:
        """See `SharedRun.read`."""
        shared = (
            distinct_rows(input_ids, attention_mask)
            if self.shares_prompts and not self.rows and self.use_cache
            else None
        )
        if shared is not None:
            return read_distinct(self, *shared, input_ids, attention_mask, keep, hidden)
        self._begin(len(input_ids))
        total = input_ids.shape[1]
        kept = [[1] * total] * len(input_ids) if attention_mask is None else attention_mask.tolist()
        self._columns = [[at for at, one in enumerate(row) if one] for row in kept]
        logits = states = None
        for row, (run, columns) in enumerate(zip(self.rows, self._columns, strict=True)):
            wanted = [at for at in columns if at >= total - keep]
            if not wanted or run.seen >= len(columns):
                continue
            own_logits, own_states = run.read(input_ids[row, columns][None], None, len(wanted), hidden)
            at = [column - (total - keep) for column in wanted]
            logits = _with_row(logits, own_logits, (len(input_ids), keep), row, at)
            if own_states is not None:
                states = _with_row(states, own_states, (len(input_ids), keep), row, at)
        return present(logits, "the logits of the columns that were read"), states

    def _begin(self, num_rows: int) -> None:
        if self.rows:
            return
        self.rows = [SharedRun(self.member, self.use_cache, hidden_tokens=self.hidden_tokens) for _ in range(num_rows)]
        for run in self.rows:
            if self._recording:
                run.record()

    def reorder(self, rows: torch.Tensor) -> None:
        """See `SharedRun.reorder`."""
        if not self.rows:
            return
        old, taken = self.rows, set()
        self.rows = []
        for row in rows.tolist():
            self.rows.append(old[row].fork() if row in taken else old[row])
            taken.add(row)
        self._columns = [self._columns[row] for row in rows.tolist()]

    def ahead(self, length: int) -> SeparateRowsRun:
        """See `SharedRun.ahead`."""
        twin = SeparateRowsRun(self.member, use_cache=True)
        for row, columns in zip(self.rows, self._columns, strict=True):
            twin.rows.append(row.ahead(sum(at < length for at in columns)))
        twin._columns = self._columns
        return twin

    def record(self) -> None:
        """See `SharedRun.record`."""
        self._recording = True
        for row in self.rows:
            row.record()

    def crop(self, length: int) -> bool:
        """See `SharedRun.crop`."""
        for row, columns in zip(self.rows, self._columns, strict=True):
            row.crop(sum(at < length for at in columns))
        return True

    def reset(self) -> None:
        """See `SharedRun.reset`."""
        for row in self.rows:
            row.reset()


def new_shared_run(
    member: Member, use_cache: bool, shares_prompts: bool = False, drops_out: bool = False, hidden_tokens: int = 1
) -> SharedRun | SeparateRowsRun:
    """The run of a member that shares the tokenizer of the others; the arguments are those of `SharedRun`."""
    if member.recurrence.reads_batches:
        return SharedRun(member, use_cache, shares_prompts, drops_out, hidden_tokens)
    return SeparateRowsRun(member, use_cache, shares_prompts, hidden_tokens)


def _with_row(
    together: torch.Tensor | None, own: torch.Tensor, shape: tuple[int, int], row: int, columns: Sequence[int]
) -> torch.Tensor:
    """Writes one row's outputs `(1, n, W)` into those of all rows, `(*shape, W)`; other entries stay 0."""
    if together is None:
        together = own.new_zeros(*shape, own.shape[-1])
    together[row, columns] = own[0]
    return together
