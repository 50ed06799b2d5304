"""Updates the readings of one row with new text."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rlae.errors import present
from hf_rlae.members.readings.state import Reading, Update
from hf_rlae.vocabulary import Boundary, Canonical, Lent, Target

ReadingTarget = tuple[Reading, Target, float, int]
"""A reading, its target for the new text, its `a_i / Z_i`, and the index of the first sum of its target."""

Candidate = tuple[tuple[int, ...], bytes, float, int, tuple[Lent, ...]]
"""A candidate for a new reading: ids after the settled ones, tail, weight, store entry, and restrictions (`Lent`)."""


MOST_FURTHER = 2
"""Maximum number of further ends of a step."""


class FurtherEnd:
    """An end that is read beside the most likely one.

    Args:
        reading (`Reading`): the reading that ends.
        token (`int`): the id with which it ends.
        share (`float`): its part of all ends.

    Attributes:
        ids (`tuple[int, ...]`): the ids after the settled ones.
        entry (`int`): the store entry of the probabilities after them; 0 before they are read.
    """

    __slots__ = ("entry", "ids", "share")

    def __init__(self, reading: Reading, token: int, share: float) -> None:
        self.ids = (*reading.ids, token)
        self.share = share
        self.entry = 0


Stay = tuple[Reading, float, float, bool]
"""A reading whose unfinished token continues: the reading, its value, the part of it that was lent to the new text, and
whether the restriction to the tokens that were lent says anything."""


class ReadingStep:
    """The update of one row's readings; implements "After a token" in docs/concepts.md, "Readings".

    `choose` sets the path to read before any forward pass, `follow` adds the probabilities along a canonical path after
    the forward pass, and `candidates` returns the new readings.

    Args:
        row (`int`): the row number.
        update (`Update`): the new text, and the shares of the members that proposed it.
    """

    __slots__ = (
        "base",
        "canonical",
        "end",
        "end_sum",
        "entries",
        "first",
        "further",
        "inner",
        "lent_sum",
        "new_ids",
        "row",
        "stay_sum",
        "stays",
        "update",
    )

    def __init__(self, row: int, update: Update) -> None:
        self.row = row
        self.update = update
        self.base: Reading | None = None  # the reading that the path continues; None if no path is read
        self.new_ids: tuple[int, ...] = ()
        self.canonical: Canonical | None = None  # set if the path has the canonical ids
        self.first = 0  # number of new ids before the first column whose probabilities are needed
        self.end = 0.0  # weight of the canonical path so far
        self.end_sum = 0.0
        self.stay_sum = 0.0
        self.lent_sum = 0.0
        self.stays: list[Stay] = []
        self.inner: list[tuple[Boundary, float]] = []
        self.entries: list[int] = []  # store entries of the needed columns
        self.further: list[FurtherEnd] = []

    def sum_up(self, targets: Sequence[ReadingTarget], sums: Sequence[float]) -> list[tuple[float, Reading, int]]:
        """Adds up how the readings end and stay with the new text; returns the ends with their values.

        Args:
            targets (`Sequence[ReadingTarget]`), sums (`Sequence[float]`): see `choose`.
        """
        # The sums of a target (see `Target.parts`): its ends, the first canonical id, the unfinished tokens, the stays.
        ends: list[tuple[float, Reading, int]] = []
        for reading, target, scale, at in targets:
            for offset, i in enumerate(target.ends):
                value = scale * sums[at + offset]
                self.end_sum += value
                if value > 0:
                    ends.append((value, reading, i))
            after = at + len(target.ends)
            stay = scale * sums[after + 2]
            if stay > 0:
                self.stays.append((reading, stay, scale * sums[after + 1], not target.lends_all))
                self.stay_sum += stay
                self.lent_sum += scale * sums[after + 1]
        return ends

    def choose(
        self, targets: Sequence[ReadingTarget], sums: Sequence[float], min_reading: float, further_end: float = 1.0
    ) -> None:
        """Chooses the path to read, before any forward pass, and further ends that are read as well.

        Args:
            targets (`Sequence[ReadingTarget]`): the row's readings with their targets.
            sums (`Sequence[float]`): the sums of probabilities of all targets.
            min_reading (`float`): an end with less probability is dropped, and needs no forward pass.
            further_end (`float`): ends with at least this probability are read apart; all others share the most likely
                path.
        """
        ends = self.sum_up(targets, sums)
        ends.sort(key=lambda entry: -entry[0])
        # All ends share the most likely path. Text that was proposed whole (r) ended with a single token, so an end by
        # canonical ids is a choice only if members with other tokenizers proposed more (o > r).
        best_path: tuple[Reading, Canonical] | None = None
        path_value = 0.0
        if self.update.r < 1.0 - self.update.r - self.update.q:
            for reading, target, scale, at in targets:
                if not target.ends and target.canonical.is_path:
                    value = scale * sums[at]
                    if value > path_value:
                        path_value, best_path = value, (reading, target.canonical)
        if ends and path_value <= ends[0][0]:
            self.base, self.new_ids = ends[0][1], (ends[0][2],)
            end = self.end_weight()[0]
            if self.stays and end < min_reading:
                self.base, self.new_ids = None, ()  # a dropped end needs no forward pass
            elif len(ends) > 1 and further_end < end:
                self._choose_further(ends, further_end / end)
        elif best_path is not None:
            (self.base, self.canonical), self.end = best_path, path_value
            self.new_ids = self.canonical.ids
            self.first = 1
            if not self.stays and self.end_sum == 0.0:
                # All candidates are on this path, so factors before its first boundary cancel when they are normalised.
                boundaries = self.canonical.boundaries
                self.first = boundaries[0].after if boundaries else len(self.new_ids)
        elif self.stays:
            pass  # nothing ends: the unfinished tokens stay, without a forward pass
        else:
            self._fall_back(max(targets, key=lambda target: target[0].weight))

    def _choose_further(self, ends: Sequence[tuple[float, Reading, int]], least: float) -> None:
        """Chooses the ends that are read beside the first one: the most likely one of each other last token.

        Readings that end with the same token predict nearly the same, whatever came before.
        """
        seen = {ends[0][2]}
        for value, reading, token in ends[1:]:
            share = value / self.end_sum
            if share < least or len(self.further) == MOST_FURTHER:
                break
            if token not in seen:
                seen.add(token)
                self.further.append(FurtherEnd(reading, token, share))

    def _fall_back(self, target: ReadingTarget) -> None:
        """No reading gives the new text any probability: the one with the largest `a` ends by the canonical ids."""
        self.base, self.canonical = target[0], target[1].canonical
        self.new_ids = self.canonical.ids
        self.first = len(self.new_ids)
        self.end = 1.0

    def end_weight(self) -> tuple[float, float, float]:
        """The probability `a(end)`, and two factors: `a(stay_i) = lent_i * q / L + stay_i * o / (E + S)`.

        A member that proposed the text as the start of a longer token is inside a token that was lent to it. E, S and L
        are the sums of the ends, of the stays, and of their parts that were lent.
        """
        if self.stay_sum <= 0:
            return 1.0, 0.0, 0.0
        r, q = self.update.r, self.update.q
        if self.end_sum <= 0:
            end, others = 0.0, (1.0 - q) / self.stay_sum
        else:
            o = max(1.0 - r - q, 0.0)
            others = o / (self.end_sum + self.stay_sum)
            end = r + others * self.end_sum
        if self.lent_sum <= 0:
            return end, 0.0, others + q / self.stay_sum
        return end, q / self.lent_sum, others

    def follow(self, following: list[float], stays: list[float]) -> None:
        """Multiplies the probabilities along a canonical path.

        Args:
            following (`list[float]`): the probability of each new id from `first` on, given the ids before it.
            stays (`list[float]`): for each boundary from `first` on, the probability of the longer tokens.
        """
        canonical = present(self.canonical, "the canonical path")
        weight = self.end
        here = self.first
        rest = iter(stays)
        for boundary in canonical.boundaries:
            if boundary.after < self.first:
                continue
            while here < boundary.after:
                weight *= following[here - self.first]
                here += 1
            self._stay_inside(boundary, weight * next(rest))
        while here < len(self.new_ids):
            weight *= following[here - self.first]
            here += 1
        if canonical.open is not None:
            self._stay_inside(canonical.open, weight * next(rest))
        else:
            self.end_sum += weight

    def _stay_inside(self, boundary: Boundary, value: float) -> None:
        self.inner.append((boundary, value))
        self.stay_sum += value

    def candidates(self, pending: bytes) -> list[Candidate]:
        """The new readings, not normalised; `pending` is unread text before the text of the update."""
        end, own, others = self.end_weight()
        found: list[Candidate] = []
        for reading, value, lent, is_restricted in self.stays:
            tail, weight = reading.tail + pending + self.update.raw, value * others
            if is_restricted and lent * own > 0:
                known = (*reading.lent, (len(reading.tail), len(self.update.raw)))
                found.append((reading.ids, tail, lent * own, reading.entry, known))
            else:
                weight += lent * own
            if weight > 0:
                found.append((reading.ids, tail, weight, reading.entry, reading.lent))
        if self.base is None:
            return found
        ids, canonical = self.base.ids, self.canonical
        for boundary, value in self.inner:
            entry = self.place(boundary.after)
            found.append((ids + self.new_ids[: boundary.after], boundary.rest, value * others, entry, ()))
        if canonical is not None and canonical.open is not None:
            if not any(entry[2] > 0 for entry in found):  # even the incomplete character has probability 0
                found.append((ids + self.new_ids, canonical.open.rest, 1.0, self.place(len(self.new_ids)), ()))
        else:
            rest = 1.0 - sum(further.share for further in self.further)
            found.append((ids + self.new_ids, b"", end * rest, self.place(len(self.new_ids)), ()))
            found += [(further.ids, b"", end * further.share, further.entry, ()) for further in self.further]
        return found

    def place(self, after: int) -> int:
        """The store entry of the probabilities after the first `after` new ids."""
        if after == 0:
            return present(self.base, "the reading that the path continues").entry
        return self.entries[after - self.first if self.canonical is not None else 0]
