"""Runs of the host, the member in whose plain `generate` an ensemble decodes; `generate` runs it, not the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.errors import present
from hf_rlae.members import Member, ReadingsRun, SeparateRowsRun, SharedRun, Update, UpdateSums
from hf_rlae.members.paths import Chain, Path, rows_of
from hf_rlae.members.readings.run import Launched
from hf_rlae.members.readings.state import Reading, RowReadings
from hf_rlae.members.readings.step import ReadingStep
from hf_rlae.members.readings.update_sums import InnerSums
from hf_rlae.members.shared_run import ReadsSharedColumns


class SharedTokenizerHost(ReadsSharedColumns):
    """The host's run if all members share a tokenizer (see `HostRun`); it returns the logits that were fed."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.forward_calls = 0
        self._fed: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """See `HostRun`."""
        self._fed = (logits, hidden)

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `SharedRun`; only the outputs of the newest column are known."""
        logits, states = present(self._fed if keep == 1 else None, "the host's output")
        return logits[:, None], None if states is None else states[:, None]

    def ahead(self, length: int) -> SharedRun | SeparateRowsRun:
        """See `SharedRun.ahead`; it reads the whole text, because the host's cache belongs to `generate`."""
        if self.member.recurrence.reads_batches:
            return SharedRun(self.member, use_cache=True, drops_out=True)
        return SeparateRowsRun(self.member, use_cache=True)

    def reorder(self, rows: torch.Tensor) -> None:
        """Does nothing: `generate` reorders the host."""

    def record(self) -> None:
        """Does nothing: columns are never removed."""

    def crop(self, length: int) -> bool:
        """`False`: columns are never removed."""
        return False

    def reset(self) -> None:
        """See `MemberRun`."""
        self._fed = None


class ReadingsHost(ReadingsRun):
    """The host's run if tokenizers differ (see `HostRun`): it never runs the model, and its ids are the generated ids.

    `generate` conditions the host on the generated ids, so the path of every update is the generated id, and the mass
    of all ends goes to it. If another member proposed the token, the host might itself have generated a longer one.
    Such a stay needs no forward pass, only probabilities that are known already, so the host keeps stays as every other
    member does.

    The outputs after a column are fed before the text of the column is taken in. Until then `measure` uses the outputs
    after the previous column, which updates need.
    """

    _fed: tuple[torch.Tensor, torch.Tensor | None, list[int]] | None = None
    _entries: list[int]
    _text: torch.Tensor
    _pads: Sequence[int]

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """See `HostRun`."""
        self._fed = (logits, hidden, text[:, -1].tolist())
        self._text, self._pads = text, pads

    def _keep_fed(self) -> None:
        """Stores the fed outputs; new rows, and rows whose newest id has no text, get one reading without a tail."""
        if self._fed is None:
            return
        logits, hidden, last_ids = self._fed
        self._fed = None
        self._entries = self._put(self.cleaned(logits), hidden, range(len(last_ids)))
        begins = not self.rows
        if begins:
            self.rows = [RowReadings() for _ in last_ids]
        for row, i in enumerate(last_ids):
            if begins or not self.vocabulary.pieces[i]:
                self.rows[row] = RowReadings(readings=(Reading((), b"", 1.0, self._entries[row]),))

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """See `ReadingsRun`; the host has read its prompt already."""
        self._keep_fed()

    def catch_up(self, rows: Sequence[int] | range) -> None:
        """Does nothing: the host has always read the whole text."""

    def defer(self, row: int, raw: bytes) -> None:
        """Takes the text in at once: the host has always read the whole text."""
        updates: list[Update | None] = [None] * len(self.rows)
        updates[row] = Update(raw)
        self.advance(updates)

    def launch(self, updates: Sequence[Update | None], sums: UpdateSums) -> Launched:
        """See `ReadingsRun`; `generate` has run the model."""
        self._keep_fed()
        steps = []
        for row in sums.rows:
            step = ReadingStep(row, present(updates[row], "the update of a row with sums"))
            step.sum_up(sums.targets[row], sums.numbers)
            step.base = Reading((), b"", 1.0, self._entries[row])  # all ends share the path that `generate` has run
            steps.append(step)
        return Launched(steps, InnerSums([], self.store))

    def mark(self, column: int) -> None:
        """See `ReadingsRun`."""
        self._keep_fed()
        super().mark(column)

    def distribution(self, in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ReadingsRun`."""
        self._keep_fed()
        return super().distribution(in_place)

    def observation(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `ReadingsRun`."""
        self._keep_fed()
        return super().observation()

    def begin_ahead(self, row: int) -> tuple[Path, bytes, int] | None:
        """See `ReadingsRun`; the look-ahead reads the generated ids again, because their cache is `generate`'s."""
        ids = self._text[row, self._pads[row] :].tolist()
        return Path(Chain(None, tuple(ids)), (), 0, 0), b"", self._entries[row]


class RereadingHost(ReadingsRun):
    """The host's run with its own readings, like every other member (see `HostRun`).

    If its path is the generated ids, the outputs of `generate` are used. Only if it reads the text in other tokens, the
    host runs once more, on a separate cache.
    """

    _fed: tuple[torch.Tensor, torch.Tensor | None]
    _text: torch.Tensor
    _texts: list[list[int]] | None  # the same, once the host has needed it
    _pads: Sequence[int]
    _served: frozenset[int] = frozenset()

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """See `HostRun`."""
        self._fed = (self.cleaned(logits), hidden)
        self._text, self._texts, self._pads = text, None, pads

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """See `ReadingsRun`; the host has read its prompt already."""
        entries = self._put(*self._fed, range(len(prompts)))
        self.rows = [
            RowReadings(Chain(None, tuple(prompt or ())), (Reading((), b"", 1.0, entry),))
            for prompt, entry in zip(prompts, entries, strict=True)
        ]

    def _is_written(self, row: int, path: Path) -> bool:
        pad = self._pads[row]
        if path.want != 1 or path.length != self._text.shape[1] - pad:
            return False
        if self._texts is None:
            self._texts = self._text.tolist()
        return path.after(0) == tuple(self._texts[row][pad:])

    @torch.no_grad()
    def _run(self, paths: list[Path | None]) -> list[int]:
        self._served = frozenset(
            row for row, path in enumerate(paths) if path is not None and self._is_written(row, path)
        )
        if not self._served:
            return super()._run(paths)
        logits, hidden = self._merged(paths, *self._fed)
        return self._put(logits, hidden, rows_of(paths))

    def _merged(
        self, paths: list[Path | None], fed_logits: torch.Tensor, fed_hidden: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs of all paths, row by row: the fed ones for rows in `_served`, else those of a forward pass."""
        rest = [None if row in self._served else path for row, path in enumerate(paths)]
        own = self.runner.run(rest) if any(rest) else None
        own_logits = None if own is None else self.cleaned(own.logits)
        logits: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        at = 0
        for row, path in enumerate(paths):
            if row in self._served:
                logits.append(fed_logits[row, None])
                hidden += [] if fed_hidden is None else [fed_hidden[row, None]]
            elif path is not None and own is not None and own_logits is not None:
                logits.append(own_logits[at : at + path.want])
                hidden += [] if own.hidden is None else [own.hidden[at : at + path.want]]
                at += path.want
        return torch.cat(logits), torch.cat(hidden) if hidden else None

    def _settled(self, row: int, read: tuple[int, ...], readings: list[Reading]) -> RowReadings:
        # if the outputs of `generate` were used, the run's own cache has not changed
        return super()._settled(row, () if row in self._served else read, readings)

    def _ended(self, row: int, ids: tuple[int, ...], entry: int) -> RowReadings:
        return self._settled(row, ids, [Reading(ids, b"", 1.0, entry)])

    def launch(self, updates: Sequence[Update | None], sums: UpdateSums) -> Launched:
        """See `ReadingsRun`."""
        self._served = frozenset()
        return super().launch(updates, sums)
