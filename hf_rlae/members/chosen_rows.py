"""The run of a member that reads only some rows of a batch, because the others never need it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.errors import present
from hf_rlae.members.remote.runs import RemoteSharedRun
from hf_rlae.members.separate_rows import SeparateRowsRun
from hf_rlae.members.shared_run import ReadsSharedColumns, Scores, SharedRun
from hf_rlae.transfers import Placed


class ChosenRowsRun(ReadsSharedColumns):
    """Reads the chosen rows with another run; the other rows have logits and hidden states 0.

    It is made for choices that hold for whole texts: a row that is chosen later makes it read all rows again.

    Source: ours.

    Args:
        run (`SharedRun`, `SeparateRowsRun` or `RemoteSharedRun`): reads the chosen rows.

    Attributes:
        rows (`list[int]` or `None`): the chosen rows in ascending order; `None` before the first choice.
    """

    def __init__(self, run: SharedRun | SeparateRowsRun | RemoteSharedRun) -> None:
        self.inner = run
        self.rows: list[int] | None = None
        self._placed: tuple[list[int], Placed] | None = None
        self._images = run.images if isinstance(run, SharedRun) else None  # of all rows

    @property
    def forward_calls(self) -> int:
        """See `MemberRun`."""
        return self.inner.forward_calls

    def choose(self, rows: Sequence[int]) -> None:
        """Chooses the rows to read from now on, in ascending order."""
        known = self.rows
        self.rows = list(rows)
        if known == self.rows:
            return
        if known is not None and set(self.rows) <= set(known):
            self.inner.reorder(torch.tensor([known.index(row) for row in self.rows], dtype=torch.long))
        elif known is not None:
            self.inner.reset()
        if self._images is not None and isinstance(self.inner, SharedRun):
            self.inner.images = self._images.select(self.rows)

    def launch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> None:
        """See `SharedRun.launch`."""
        self.inner.launch(*self._chosen(input_ids, attention_mask), keep, hidden)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> Scores:
        """See `SharedRun.read`."""
        count = len(input_ids)
        logits, states = self.inner.read(*self._chosen(input_ids, attention_mask), keep, hidden)
        if self.rows is None or len(self.rows) == count:
            return logits, states
        return self._spread(logits, count), None if states is None else self._spread(states, count)

    def _chosen(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.rows is None or len(self.rows) == len(input_ids):
            return input_ids, attention_mask
        if self._placed is None or self._placed[0] != self.rows:
            self._placed = (self.rows, Placed(torch.tensor(self.rows, dtype=torch.long)))
        rows = self._on(input_ids.device)
        return input_ids[rows], None if attention_mask is None else attention_mask[rows]

    def _spread(self, outputs: torch.Tensor, count: int) -> torch.Tensor:
        """Outputs of the chosen rows as outputs of all `count` rows, 0 in the others."""
        spread = outputs.new_zeros(count, *outputs.shape[1:])
        spread[self._on(spread.device)] = outputs
        return spread

    def _on(self, device: torch.device) -> torch.Tensor:
        """The chosen rows on a device, where they are copied to once."""
        return present(self._placed, "the chosen rows")[1].on(device)[0]

    def reorder(self, rows: torch.Tensor) -> None:
        """See `MemberRun`."""
        if self.rows is None:
            return self.inner.reorder(rows)
        if self._images is not None:
            self._images = self._images.select(rows.tolist())
        places = {row: place for place, row in enumerate(self.rows)}
        wanted = rows.tolist()
        self.rows = [at for at, row in enumerate(wanted) if row in places]
        self.inner.reorder(torch.tensor([places[wanted[at]] for at in self.rows], dtype=torch.long))

    def record(self) -> None:
        """See `MemberRun`."""
        self.inner.record()

    def crop(self, length: int) -> bool:
        """See `MemberRun`."""
        return self.inner.crop(length)

    def reset(self) -> None:
        """See `MemberRun`; the choice stays."""
        self.inner.reset()
