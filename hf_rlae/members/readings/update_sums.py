"""The sums of probabilities that an update of readings needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.members.readings.probability_store import ProbabilityStore, flat
from hf_rlae.members.readings.state import RowReadings
from hf_rlae.members.readings.step import ReadingStep, ReadingTarget
from hf_rlae.members.readings.union_distribution import UnionDistribution
from hf_rlae.vocabulary import Alignment


class UpdateSums:
    """The ways in which the readings of some rows can continue with new text, and their probabilities.

    Args:
        numbers (`Sequence[float]`): the sums.
        targets (`list[list[ReadingTarget]]`): for each row, its readings with their targets, `a_i / Z_i`, and the index
            in `numbers` of the first sum of each target.
        rows (`list[int]`): the rows that have new text.
    """

    __slots__ = ("numbers", "rows", "targets")

    def __init__(self, numbers: Sequence[float], targets: list[list[ReadingTarget]], rows: list[int]) -> None:
        self.numbers = numbers
        self.targets = targets
        self.rows = rows

    def proposed(self) -> list[tuple[float, float]]:
        """For each row, how much of `P(u)` the member proposed whole, and how much as the start of a longer token."""
        numbers = self.numbers
        shares = []
        for targets in self.targets:
            whole = unfinished = 0.0
            for _, target, scale, at in targets:
                ends = len(target.ends)
                whole += scale * (numbers[at] if ends == 1 else sum(numbers[at : at + ends]))
                unfinished += scale * numbers[at + ends + 1]
            shares.append((whole, unfinished))
        return shares


class PendingSums:
    """Sums as a tensor on the device, so that the sums of several members can be copied to the CPU together.

    All sums are computed in one gather.

    Args:
        rows (`Sequence[RowReadings]`): B rows of a member.
        raws (`Sequence[bytes | None]`): the new bytes of each row; `None` for rows without new text.
        alignment (`Alignment`), store (`ProbabilityStore`), distribution (`UnionDistribution`): the member's.

    Attributes:
        sums (`torch.FloatTensor` of shape `(N,)`): fp32.
        rows (`list[int]`): the rows that have new text.
    """

    __slots__ = ("_open", "_targets", "rows", "sums")

    def __init__(
        self,
        rows: Sequence[RowReadings],
        raws: Sequence[bytes | None],
        alignment: Alignment,
        store: ProbabilityStore,
        distribution: UnionDistribution,
    ) -> None:
        self.rows: list[int] = []
        self._targets: list[list[ReadingTarget]] = [[] for _ in raws]
        self._open: list[tuple[int, int, int]] = []  # readings with a tail: row, index in the row, index of Z
        parts: list[torch.Tensor] = []
        segments: list[torch.Tensor] = []
        entries: list[int] = []
        starts: list[int] = []
        count = 0
        find, width = alignment.target, store.width
        summed: list[tuple[int, int, int]] = []  # the same for readings whose Z the last distribution computed
        for row, raw in enumerate(raws):
            if raw is None:
                continue
            self.rows.append(row)
            state, targets = rows[row], self._targets[row]
            whole = state.pending + raw
            for reading in state.readings:
                target = find(reading.tail, whole, reading.lent)
                parts.append(target.ids)
                segments.append(target.segments)
                entries.append(reading.entry)
                starts.append(count)
                targets.append((reading, target, reading.weight, count))
                count += target.num_segments
                if reading.tail:
                    known = distribution.place_of(reading)
                    if known is not None:
                        summed.append((row, len(targets) - 1, known))
                        continue
                    tokens = alignment.tail_map(reading.tail, reading.lent).member_ids
                    parts.append(tokens)
                    segments.append(torch.zeros_like(tokens))
                    entries.append(reading.entry)
                    starts.append(count)
                    self._open.append((row, len(targets) - 1, count))
                    count += 1
        self._open += [(row, place, count + known) for row, place, known in summed]
        if not parts:
            self.sums = torch.zeros(0, device=store.device)
            return
        sizes = torch.tensor([len(part) for part in parts])
        spread = torch.tensor([[entry * width for entry in entries], starts]).repeat_interleave(sizes, 1)
        sums = store.sums(torch.cat(parts) + spread[0], torch.cat(segments) + spread[1], count)
        self.sums = sums if distribution.totals is None else torch.cat([sums, distribution.totals])

    def read(self, numbers: Sequence[float] | None = None) -> UpdateSums:
        """The sums as numbers, with `a_i / Z_i` of the readings filled in.

        Args:
            numbers (`Sequence[float]`, *optional*): the values of `sums`, if they are on the CPU already.
        """
        if numbers is None:
            numbers = self.sums.tolist()
        for row, place, z_at in self._open:
            reading, target, weight, at = self._targets[row][place]
            z = numbers[z_at]
            self._targets[row][place] = (reading, target, weight / z if z > 0 else 0.0, at)
        self._open = []
        return UpdateSums(numbers, self._targets, self.rows)


def weigh_inside(steps: Sequence[ReadingStep], store: ProbabilityStore) -> None:
    """Follows canonical paths id by id, and computes the weights of their inner boundaries and of their end."""
    parts: list[torch.Tensor] = []
    segments: list[int] = []
    plans: list[tuple[ReadingStep, int, int]] = []
    for step in steps:
        canonical = step.canonical
        if canonical is None:
            continue
        if not step.new_ids or (step.first == len(step.new_ids) and canonical.open is None):
            step.end_sum += step.end
            continue
        following = step.new_ids[step.first :]
        plans.append((step, len(segments), len(following)))
        parts.append(flat(following, step.entries, store.width))
        segments += [1] * len(following)
        inner = [boundary for boundary in canonical.boundaries if boundary.after >= step.first]
        for boundary in [*inner, canonical.open] if canonical.open is not None else inner:
            parts.append(boundary.stay_ids + step.place(boundary.after) * store.width)
            segments.append(len(boundary.stay_ids))
    if not plans:
        return
    index = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments))
    sums = store.sums(torch.cat(parts), index, len(segments)).tolist()
    for step, at, count in plans:
        step.follow(sums[at : at + count], sums[at + count :])
