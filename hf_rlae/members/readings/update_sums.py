"""The sums of probabilities that an update of readings rests on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.members.readings.probability_store import ProbabilityPool
from hf_rlae.members.readings.state import Row
from hf_rlae.members.readings.step import Entry
from hf_rlae.members.readings.union_distribution import UnionDistribution
from hf_rlae.vocabulary import Alignment


class Measurement:
    """How every reading of some rows can take new text in, and how likely it is to.

    All sums are gathered in one call, as a tensor, so that those of several members can be brought to the CPU
    together; `read` then takes them as numbers.

    Args:
        rows (`Sequence[Row]`): B rows of a member.
        raws (`Sequence[bytes | None]`): the new bytes of each row; `None` leaves the row out.
        alignment (`Alignment`), pool (`ProbabilityPool`), said (`UnionDistribution`): the member's.

    Attributes:
        sums (`torch.FloatTensor` of shape `(N,)`): fp32.
        numbers (`Sequence[float]`): the same, once `read` was called.
        entries (`list[list[Entry]]`): of every row, its readings with their targets, `a_i / Z_i`, and where in
            `numbers` their sums begin; until `read` is called those with a tail have `a_i` alone.
        rows (`list[int]`): the rows that are not left out.
    """

    __slots__ = ("_open", "entries", "numbers", "rows", "sums")

    def __init__(
        self,
        rows: Sequence[Row],
        raws: Sequence[bytes | None],
        alignment: Alignment,
        pool: ProbabilityPool,
        said: UnionDistribution,
    ) -> None:
        self.numbers: Sequence[float] = ()
        self.entries: list[list[Entry]] = [[] for _ in raws]
        self.rows = [row for row, raw in enumerate(raws) if raw is not None]
        self._open: list[tuple[int, int, int]] = []  # entries with a tail: row, place in the row, place of Z
        parts: list[torch.Tensor] = []
        segments: list[torch.Tensor] = []
        slots: list[int] = []
        starts: list[int] = []
        count = 0
        find, width = alignment.target, pool.width
        summed: list[tuple[int, int, int]] = []  # the same of those whose Z the last distribution has summed already
        for row in self.rows:
            state = rows[row]
            raw: bytes = state.pending + raws[row]  # type: ignore[operator]
            entries = self.entries[row]
            for reading in state.readings:
                target = find(reading.tail, raw)
                parts.append(target.ids)
                segments.append(target.segments)
                slots.append(reading.slot)
                starts.append(count)
                entries.append((reading, target, reading.weight, count))
                count += target.num_segments
                if reading.tail:
                    known = said.place_of(reading)
                    if known is not None:
                        summed.append((row, len(entries) - 1, known))
                        continue
                    tokens = alignment.tail_map(reading.tail).member_ids
                    parts.append(tokens)
                    segments.append(torch.zeros_like(tokens))
                    slots.append(reading.slot)
                    starts.append(count)
                    self._open.append((row, len(entries) - 1, count))
                    count += 1
        self._open += [(row, place, count + known) for row, place, known in summed]
        if not parts:
            self.sums = torch.zeros(0, device=pool.device)
            return
        sizes = torch.tensor([len(part) for part in parts])
        spread = torch.tensor([[slot * width for slot in slots], starts]).repeat_interleave(sizes, 1)
        sums = pool.sums(torch.cat(parts) + spread[0], torch.cat(segments) + spread[1], count)
        self.sums = sums if said.totals is None else torch.cat([sums, said.totals])

    def read(self, numbers: Sequence[float] | None = None) -> Measurement:
        """Takes the sums as numbers, and completes `entries`.

        Args:
            numbers (`Sequence[float]`, *optional*): `sums`; fetched if not given.
        """
        self.numbers = numbers = self.sums.tolist() if numbers is None else numbers
        for row, place, z_at in self._open:
            reading, target, weight, at = self.entries[row][place]
            z = numbers[z_at]
            self.entries[row][place] = (reading, target, weight / z if z > 0 else 0.0, at)
        self._open = []
        return self

    def proposed(self) -> list[tuple[float, float]]:
        """How much of `P(u)` the member proposed whole, and how much as the beginning of a longer token; a row each."""
        numbers = self.numbers
        shares = []
        for entries in self.entries:
            whole = unfinished = 0.0
            for _, target, scale, at in entries:
                ends = len(target.ends)
                whole += scale * (numbers[at] if ends == 1 else sum(numbers[at : at + ends]))
                unfinished += scale * numbers[at + ends + 1]
            shares.append((whole, unfinished))
        return shares
