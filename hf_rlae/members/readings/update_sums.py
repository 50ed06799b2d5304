"""The sums of probabilities that an update of readings needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.members.readings.probability_store import ProbabilityStore
from hf_rlae.members.readings.state import RowReadings
from hf_rlae.members.readings.step import ReadingStep, ReadingTarget
from hf_rlae.members.readings.union_distribution import UnionDistribution
from hf_rlae.transfers import upload
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
        offsets: list[int] = []  # of the entry of each part
        segments: list[int] = []  # of each part: the index of its sum
        single: list[int] = []  # places of ids that are parts of their own
        single_segments: list[int] = []
        count = 0
        find, width, device = alignment.target, store.width, store.device
        summed: list[tuple[int, int, int]] = []  # the same for readings whose Z the last distribution computed
        for row, raw in enumerate(raws):
            if raw is None:
                continue
            self.rows.append(row)
            state, targets = rows[row], self._targets[row]
            whole = state.pending + raw
            for reading in state.readings:
                target = find(reading.tail, whole, reading.lent)
                offset = reading.entry * width
                targets.append((reading, target, reading.weight, count))
                for at, i in enumerate(target.single, count):
                    single.append(i + offset)
                    single_segments.append(at)
                count += target.num_segments
                for tokens, segment in target.several:
                    parts.append(tokens.on(device))
                    offsets.append(offset)
                    segments.append(count + segment)
                if reading.tail:
                    known = distribution.place_of(reading)
                    if known is not None:
                        summed.append((row, len(targets) - 1, known))
                        continue
                    parts.append(alignment.tail_map(reading.tail, reading.lent).placed.on(device)[0])
                    offsets.append(offset)
                    segments.append(count)
                    self._open.append((row, len(targets) - 1, count))
                    count += 1
        self._open += [(row, place, count + known) for row, place, known in summed]
        if not count:
            self.sums = torch.zeros(0, device=device)
            return
        sizes = [len(part) for part in parts]
        numbers = upload(
            torch.tensor([*single, *single_segments, *offsets, *segments, *sizes], dtype=torch.long), device
        )
        places, sums_of = numbers[: 2 * len(single)].view(2, -1)
        if parts:
            table = numbers[2 * len(single) :].view(3, -1)
            spread = table[:2].repeat_interleave(table[2], 1, output_size=sum(sizes))
            places, sums_of = torch.cat([places, torch.cat(parts) + spread[0]]), torch.cat([sums_of, spread[1]])
        sums = store.sums(places, sums_of, count)
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


def read_together(pending: Sequence[PendingSums]) -> list[UpdateSums]:
    """The sums of several members as numbers; the device is waited for once."""
    tensors = [entry.sums for entry in pending]
    found, at = [], 0
    numbers = on_host(tensors)
    for entry in pending:
        size = len(entry.sums)
        found.append(entry.read(numbers[at : at + size]))
        at += size
    return found


def on_host(sums: Sequence[torch.Tensor]) -> list[float]:
    """The numbers of several vectors, one after the other; the devices are waited for once."""
    if len(sums) == 1:
        return sums[0].tolist()
    return torch.cat([entry.to(sums[0].device) for entry in sums]).tolist() if sums else []


class InnerSums:
    """The probabilities along the canonical paths of some rows, which the weights of their new readings need.

    Args:
        steps (`Sequence[ReadingStep]`): the rows, whose paths the model has read.
        store (`ProbabilityStore`): the member's.

    Attributes:
        sums (`torch.FloatTensor` of shape `(N,)` or `None`): on the device; `None` if no row has a canonical path.
    """

    __slots__ = ("_plans", "sums")

    def __init__(self, steps: Sequence[ReadingStep], store: ProbabilityStore) -> None:
        self.sums: torch.Tensor | None = None
        self._plans: list[tuple[ReadingStep, int, int]] = []
        parts: list[torch.Tensor] = []
        offsets: list[int] = []
        sizes: list[int] = []
        following: list[int] = []  # places of the ids of the paths: each is a sum of its own
        for step in steps:
            canonical = step.canonical
            if canonical is None:
                continue
            if not step.new_ids or (step.first == len(step.new_ids) and canonical.open is None):
                step.end_sum += step.end
                continue
            own = step.new_ids[step.first :]
            following += [i + entry * store.width for i, entry in zip(own, step.entries, strict=False)]
            inner = [boundary for boundary in canonical.boundaries if boundary.after >= step.first]
            inner += [canonical.open] if canonical.open is not None else []
            self._plans.append((step, len(own), len(inner)))
            for boundary in inner:
                parts.append(boundary.stays.on(store.device))
                offsets.append(step.place(boundary.after) * store.width)
                sizes.append(len(boundary.stays))
        if not self._plans:
            return
        numbers = upload(torch.tensor([*following, *offsets, *sizes], dtype=torch.long), store.device)
        single, table = store.take(numbers[: len(following)]), numbers[len(following) :].view(2, -1)
        if not parts:
            self.sums = single
            return
        index = torch.arange(len(parts), device=store.device)
        spread = torch.stack([table[0], index]).repeat_interleave(table[1], 1, output_size=sum(sizes))
        self.sums = torch.cat([single, store.sums(torch.cat(parts) + spread[0], spread[1], len(parts))])

    def apply(self, numbers: Sequence[float]) -> None:
        """Multiplies the probabilities along the paths; `numbers` are the values of `sums`."""
        at, stays = 0, sum(count for _, count, _ in self._plans)
        for step, count, boundaries in self._plans:
            step.follow(list(numbers[at : at + count]), list(numbers[stays : stays + boundaries]))
            at, stays = at + count, stays + boundaries


def weigh_inside(pending: Sequence[InnerSums]) -> None:
    """Computes the weights of inner boundaries and ends of canonical paths; the device is waited for once."""
    waiting = [(entry, entry.sums) for entry in pending if entry.sums is not None]
    numbers = on_host([sums for _, sums in waiting])
    at = 0
    for entry, sums in waiting:
        entry.apply(numbers[at : at + len(sums)])
        at += len(sums)
