"""The member inside whose own `generate` an ensemble writes: `generate` runs it, and its engine hears it from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.engines.readings import ReadingsEngine
from hf_rlae.members import Measurement, ReadingsRelay, Update
from hf_rlae.members.ragged_run import Chain, Path
from hf_rlae.members.readings.state import Reading, Row
from hf_rlae.members.readings.step import ReadingStep


class LockstepHost:
    """The host in the place of a `LockstepRelay`: its logits are those that it was fed."""

    def __init__(self) -> None:
        self.forward_calls = 0
        self._fed: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes what the host said after the newest column: logits `(B, V)` and hidden states `(B, H)`."""
        self._fed = (logits, hidden)

    def columns(self, total: int) -> int:
        """How many columns the host reads where the text has `total`."""
        return total

    def lengths(self, columns: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
        """See `LockstepRelay.lengths`."""
        return columns - firsts[:, None]

    def run(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `LockstepRelay.run`; only the newest column is known."""
        assert self._fed is not None
        assert keep == 1
        logits, states = self._fed
        return logits[:, None], None if states is None else states[:, None]

    def reorder(self, rows: torch.Tensor) -> None:
        """`generate` reorders the host itself."""

    def record(self) -> None:
        """Nothing is taken back."""

    def crop(self, length: int) -> bool:
        """Nothing is taken back."""
        return False

    def reset(self) -> None:
        """Forgets what it was fed."""
        self._fed = None


class ReadingsHost(ReadingsRelay):
    """The host in the place of a `ReadingsRelay`: it is never run, and its ids are always those that were written.

    `generate` conditions the host on the ids of the text, so the live path of every update is the written id: all ends
    count for it. Another member may have carried the written token where the host itself would have written a longer
    one. Such a stay needs no forward pass, only the probabilities that the host gave before, so stays are kept as by
    every other member.

    What the host says after a column is fed before the column is taken in; until then `measure` speaks of the
    column before, which is what updates ask about.
    """

    _fed: tuple[torch.Tensor, torch.Tensor | None, list[int]] | None = None
    _slots: list[int]

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes what the host said after the newest column of the text: logits `(B, V)` and hidden states `(B, H)`."""
        self._fed = (logits, hidden, text[:, -1].tolist())

    def _store(self) -> None:
        """Puts what was fed into the pool; rows that begin, or whose newest token says nothing, start from there."""
        if self._fed is None:
            return
        logits, hidden, last_ids = self._fed
        self._fed = None
        logits = logits.to(device=self.device, dtype=torch.float32)
        if len(self._silent):
            logits = logits.index_fill(-1, self._silent, -torch.inf)
        used = {0} | {reading.slot for row in self.rows for reading in row.readings}
        self._slots = self.pool.store(logits, hidden, used)
        begins = not self.rows
        if begins:
            self.rows = [Row() for _ in last_ids]
        for row, i in enumerate(last_ids):
            if begins or not self.vocabulary.pieces[i]:
                self.rows[row] = Row(readings=(Reading((), b"", 1.0, self._slots[row]),))

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """See `ReadingsRelay.admit`; the host has read its prompt."""
        self._store()

    def catch_up(self, rows: Sequence[int] | range) -> None:
        """The host is never behind."""

    def defer(self, row: int, raw: bytes) -> None:
        """The host is never behind: it takes the text in at once."""
        updates: list[Update | None] = [None] * len(self.rows)
        updates[row] = Update(raw)
        self.advance(updates)

    def advance(self, updates: Sequence[Update | None], measurement: Measurement | None = None) -> None:
        """See `ReadingsRelay.advance`."""
        if measurement is None:
            measurement = self.measure([None if update is None else update.raw for update in updates]).read()
        sums = measurement.numbers
        self._store()
        for row, update in enumerate(updates):
            if update is None:
                continue
            step = ReadingStep(row, update)
            for reading, target, scale, at in measurement.entries[row]:
                ends = len(target.ends)
                step.end_sum += scale * sum(sums[at : at + ends])
                stay = scale * sums[at + ends + 2]
                if stay > 0:
                    step.add_stay(reading, stay)
            end, factor = step.end_weight()
            found = [Reading((), b"", end, self._slots[row])]
            found += [Reading((), r.tail + update.raw, value * factor, r.slot) for r, value in step.stays]
            found.sort(key=lambda reading: -reading.weight)
            kept = [reading for reading in found if reading.weight >= self.min_reading] or found[:1]
            kept = kept[: self.max_readings]
            total = sum(reading.weight for reading in kept)
            for reading in kept:
                reading.weight = reading.weight / total if len(kept) > 1 else 1.0
            self.rows[row] = Row(readings=tuple(kept))

    def mark(self, column: int) -> None:
        """See `ReadingsRelay.mark`."""
        self._store()
        super().mark(column)

    def distribution(self, in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ReadingsRelay.distribution`."""
        self._store()
        return super().distribution(in_place)

    def observation(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `ReadingsRelay.observation`."""
        self._store()
        return super().observation()

    def reorder(self, rows: torch.Tensor) -> None:
        """See `ReadingsRelay.reorder`."""
        self.rows = [self.rows[row] for row in rows.tolist()] if self.rows else []


class RereadingHost(ReadingsRelay):
    """The host with readings of its own, as every other member has them.

    Where its live path is the text as it was written, `generate` has run it already and what it said is taken as it
    is; only where it reads the text in other tokens is it run once more, on a cache of its own.
    """

    _fed: tuple[torch.Tensor, torch.Tensor | None] | None = None
    _text: torch.Tensor
    _pads: Sequence[int]
    _served: frozenset[int] = frozenset()

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes what the host said after the text `(B, L)`, whose rows begin with so many `pads`."""
        logits = logits.to(device=self.device, dtype=torch.float32)
        if len(self._silent):
            logits = logits.index_fill(-1, self._silent, -torch.inf)
        self._fed = (logits, hidden)
        self._text, self._pads = text, pads

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """See `ReadingsRelay.admit`; the host has read its prompt."""
        assert self._fed is not None
        slots = self.pool.store(*self._fed, {0})
        self.rows = [
            Row(Chain(None, tuple(prompt or ())), (Reading((), b"", 1.0, slot),))
            for prompt, slot in zip(prompts, slots, strict=True)
        ]

    def _is_written(self, row: int, path: Path) -> bool:
        pad = self._pads[row]
        if path.want != 1 or path.length != self._text.shape[1] - pad:
            return False
        return path.after(0) == tuple(self._text[row, pad:].tolist())

    @torch.no_grad()
    def _run(self, paths: list[Path | None]) -> list[int]:
        assert self._fed is not None
        fed_logits, fed_hidden = self._fed
        self._served = frozenset(
            row for row, path in enumerate(paths) if path is not None and self._is_written(row, path)
        )
        rest = [None if row in self._served else path for row, path in enumerate(paths)]
        if not self._served:
            return super()._run(paths)
        logits, hidden = [], []
        own = self.runner.run(rest) if any(rest) else None
        own_logits = None if own is None else own.logits.float()
        if own_logits is not None and len(self._silent):
            own_logits.index_fill_(-1, self._silent, -torch.inf)
        at = 0
        for row, path in enumerate(paths):
            if path is None:
                continue
            if row in self._served:
                logits.append(fed_logits[row, None])
                hidden += [] if fed_hidden is None else [fed_hidden[row, None]]
            else:
                assert own is not None
                assert own_logits is not None
                logits.append(own_logits[at : at + path.want])
                hidden += [] if own.hidden is None else [own.hidden[at : at + path.want]]
                at += path.want
        used = {0} | {reading.slot for row in self.rows for reading in row.readings}
        return self.pool.store(torch.cat(logits), torch.cat(hidden) if hidden else None, used)

    def _settled(self, row: int, read: tuple[int, ...], readings: list[Reading]) -> Row:
        # where `generate` has read the text, the host's own cache has not moved
        return super()._settled(row, () if row in self._served else read, readings)

    def advance(self, updates: Sequence[Update | None], measurement: Measurement | None = None) -> None:
        """See `ReadingsRelay.advance`."""
        self._served = frozenset()
        super().advance(updates, measurement)


def seat_host(cache: EnsembleCache, engine: Any, rereads: bool) -> LockstepHost | ReadingsHost | RereadingHost:
    """Puts the host in the place of the first member of a fresh cache."""
    host: LockstepHost | ReadingsHost | RereadingHost
    if isinstance(engine, ReadingsEngine):
        host = (RereadingHost if rereads else ReadingsHost)(
            engine.members[0],
            engine.vocabularies[0],
            engine.alignments[0],
            engine.max_readings,
            engine.min_reading,
            runner=engine.runners[0],
            hidden_tokens=cache.hidden_tokens,
        )
    else:
        host = LockstepHost()
    cache.relays[0] = host
    return host
