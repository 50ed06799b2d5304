"""The rows of one member's readings, and what they were after earlier columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.members.readings.state import RowReadings
from hf_rlae.vocabulary import Lent


class ReadingRows:
    """What one member has read in each row of a batch, and after which columns; it never runs the model.

    Attributes:
        rows (`list[RowReadings]`): one per batch row.
    """

    def __init__(self) -> None:
        self.rows: list[RowReadings] = []
        self._history: dict[int, list[RowReadings]] | None = None
        self._column = -1

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """Sets prompts, which are read when the member is first needed.

        Args:
            prompts (`Sequence[Sequence[int] | None]`): the prompt of each row in the member's own ids; rows with `None`
                do not change.
        """
        if not self.rows:
            self.rows = [RowReadings() for _ in prompts]
        for row, ids in enumerate(prompts):
            if ids is not None:
                self.rows[row] = RowReadings(unread=tuple(ids))

    def defer(self, row: int, raw: bytes) -> None:
        """Adds the text `raw` to a row, to be read when the member is next needed."""
        self.rows[row] = self.rows[row].deferred(raw)

    def readings(self, row: int) -> list[tuple[tuple[int, ...], bytes, float, tuple[Lent, ...]]]:
        """The readings of a row as `(all ids, tail, a, lent)`, with the largest `a` first; see `Reading`."""
        state = self.rows[row]
        return [(state.settled.after(0) + r.ids, r.tail, r.weight, r.lent) for r in state.readings]

    @property
    def may_be_empty(self) -> bool:
        """Whether some row may have no next-token mass (see `RowReadings.may_be_empty`)."""
        return any(row.may_be_empty for row in self.rows)

    def entries(self) -> set[int]:
        """The store entries of all readings, recorded ones included."""
        kept = (self.rows, *(self._history or {}).values())
        return {reading.entry for rows in kept for row in rows for reading in row.readings}

    def reorder(self, rows: torch.Tensor) -> None:
        """See `MemberRun`."""
        chosen = rows.tolist()
        self.rows = [self.rows[row] for row in chosen]
        if self._history is not None:
            self._history = {at: [past[row] for row in chosen] for at, past in self._history.items()}

    def record(self) -> None:
        """See `MemberRun`; records the rows after every column of the last step."""
        if self._history is None:
            self._history = {self._column: list(self.rows)}

    def forget_before(self, column: int) -> None:
        """Called when a step begins with `column`: drops the rows recorded before column `column - 1`."""
        if self._history is not None:
            self._history = {at: rows for at, rows in self._history.items() if at == column - 1}

    def mark(self, column: int) -> None:
        """Called when the text up to `column` has been taken in."""
        self._column = column
        if self._history is not None:
            self._history[column] = list(self.rows)

    def crop(self, length: int) -> bool:
        """See `MemberRun`; `False` if the rows after that column were not recorded."""
        if length > self._column:
            return True
        before = (self._history or {}).get(length - 1)
        if before is None or len(before) != len(self.rows):
            return False
        self.rows = [then.taken_back(now) for now, then in zip(self.rows, before, strict=True)]
        self._column = length - 1
        return True

    def reset(self) -> None:
        """See `MemberRun`."""
        self.rows = []
        self._column = -1
        if self._history is not None:
            self._history = {}
