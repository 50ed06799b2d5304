"""How one row's readings change with new text."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rlae.members.readings.state import Reading, Update
from hf_rlae.vocabulary import Boundary, Canonical, Target

ReadingTarget = tuple[Reading, Target, float, int]
"""A reading, how it can take the new text, its `a_i / Z_i`, and where the sums of its target begin."""

Candidate = tuple[tuple[int, ...], bytes, float, int]
"""A possible new reading: ids after the settled ones, tail, weight, store entry."""


class ReadingStep:
    """One row on its way through an update: rule 3 of readings, in numbers.

    `choose` sets the live path before any forward pass, `follow` takes in what the forward pass said along a canonical
    path, and `candidates` gives the new readings.

    Args:
        row (`int`): which row.
        update (`Update`): the new text, with the shares of those who proposed it.
    """

    __slots__ = (
        "base",
        "canonical",
        "end",
        "end_sum",
        "entries",
        "first",
        "inner",
        "new_ids",
        "row",
        "stay_sum",
        "stays",
        "update",
    )

    def __init__(self, row: int, update: Update) -> None:
        self.row = row
        self.update = update
        self.base: Reading | None = None  # the reading that the live path goes on from
        self.new_ids: tuple[int, ...] = ()
        self.canonical: Canonical | None = None  # set where the path is canonical
        self.first = 0  # how many new ids come before the first wanted column
        self.end = 0.0  # weight of the canonical path so far
        self.end_sum = 0.0
        self.stay_sum = 0.0
        self.stays: list[tuple[Reading, float]] = []
        self.inner: list[tuple[Boundary, float]] = []
        self.entries: list[int] = []  # where the probabilities of the wanted columns are

    def choose(self, targets: Sequence[ReadingTarget], sums: Sequence[float], min_reading: float) -> None:
        """Sets the live path, before any forward pass.

        Args:
            targets (`Sequence[ReadingTarget]`): the row's readings with their targets.
            sums (`Sequence[float]`): of the probabilities of all targets.
            min_reading (`float`): an end that is lighter is dropped, and costs no forward pass.
        """
        best_end: tuple[float, Reading | None, int] = (0.0, None, -1)
        best_path: tuple[float, Reading | None, Canonical | None] = (0.0, None, None)
        for reading, target, scale, at in targets:
            for offset, i in enumerate(target.ends):
                value = scale * sums[at + offset]
                self.end_sum += value
                if value > best_end[0]:
                    best_end = (value, reading, i)
            after = at + len(target.ends)
            if not target.ends and target.canonical.is_path:
                value = scale * sums[after]
                if value > best_path[0]:
                    best_path = (value, reading, target.canonical)
            stay = scale * sums[after + 2]
            if stay > 0:
                self.add_stay(reading, stay)
        update = self.update
        others = 1.0 - update.r - update.q
        if best_end[1] is not None and (update.r >= others or best_path[0] <= best_end[0]):
            self.base, self.new_ids = best_end[1], (best_end[2],)
            if self.stays and self.end_weight()[0] < min_reading:
                self.base, self.new_ids = None, ()  # a dropped end costs no forward pass
        elif best_path[1] is not None and update.r < others:
            assert best_path[2] is not None
            self.base, self.canonical, self.end = best_path[1], best_path[2], best_path[0]
            self.new_ids = self.canonical.ids
            self.first = 1
            if not self.stays and self.end_sum == 0.0:  # no other candidates: only ratios inside the path count
                boundaries = self.canonical.boundaries
                self.first = boundaries[0].after if boundaries else len(self.new_ids)
        elif self.stays:
            pass
        else:
            self._fall_back(max(targets, key=lambda target: target[0].weight))

    def add_stay(self, reading: Reading, value: float) -> None:
        """The reading's unfinished token may go on past the new text."""
        self.stays.append((reading, value))
        self.stay_sum += value

    def _fall_back(self, target: ReadingTarget) -> None:
        """Nothing explains the new text: the heaviest reading ends by the canonical ids."""
        self.base, self.canonical = target[0], target[1].canonical
        self.new_ids = self.canonical.ids
        self.first = len(self.new_ids)
        self.end = 1.0

    def end_weight(self) -> tuple[float, float]:
        """`a(end)`, and what a stay's sum is multiplied with: `a(stay_i) = stay_i * (q / S + o / (E + S))`."""
        stay_sum = self.stay_sum
        if stay_sum <= 0:
            return 1.0, 0.0
        if self.end_sum <= 0:
            return 0.0, 1.0 / stay_sum
        r, q = self.update.r, self.update.q
        o = max(1.0 - r - q, 0.0)
        total = self.end_sum + stay_sum
        return r + o * self.end_sum / total, q / stay_sum + o / total

    def follow(self, following: list[float], stays: list[float]) -> None:
        """Multiplies up the probabilities along a canonical path."""
        assert self.canonical is not None
        weight = self.end
        here = self.first
        rest = iter(stays)
        for boundary in self.canonical.boundaries:
            if boundary.after < self.first:
                continue
            while here < boundary.after:
                weight *= following[here - self.first]
                here += 1
            self._stay_inside(boundary, weight * next(rest))
        while here < len(self.new_ids):
            weight *= following[here - self.first]
            here += 1
        if self.canonical.open is not None:
            self._stay_inside(self.canonical.open, weight * next(rest))
        else:
            self.end_sum += weight

    def _stay_inside(self, boundary: Boundary, value: float) -> None:
        self.inner.append((boundary, value))
        self.stay_sum += value

    def candidates(self, pending: bytes) -> list[Candidate]:
        """The new readings, not yet normalised; `pending` is text that came before the update's."""
        end, factor = self.end_weight()
        found: list[Candidate] = [
            (reading.ids, reading.tail + pending + self.update.raw, value * factor, reading.entry)
            for reading, value in self.stays
        ]
        if self.base is None:
            return found
        ids, canonical = self.base.ids, self.canonical
        for boundary, value in self.inner:
            entry = self.place(boundary.after)
            found.append((ids + self.new_ids[: boundary.after], boundary.rest, value * factor, entry))
        if canonical is not None and canonical.open is not None:
            if not any(entry[2] > 0 for entry in found):  # not even half a character is expected here
                found.append((ids + self.new_ids, canonical.open.rest, 1.0, self.place(len(self.new_ids))))
        else:
            found.append((ids + self.new_ids, b"", end, self.place(len(self.new_ids))))
        return found

    def place(self, after: int) -> int:
        """The store entry of the probabilities after `after` new ids."""
        assert self.base is not None
        if after == 0:
            return self.base.entry
        return self.entries[after - self.first if self.canonical is not None else 0]
