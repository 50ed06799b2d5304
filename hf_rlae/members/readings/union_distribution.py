"""A member's next-token distribution over the union vocabulary, computed from its readings of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.members.readings.probability_store import ProbabilityStore, goes_row_by_row
from hf_rlae.members.readings.state import Reading, RowReadings
from hf_rlae.transfers import upload
from hf_rlae.vocabulary import Alignment


class UnionDistribution:
    """Maps next-token probabilities from a member's own tokens to the union vocabulary.

    Source: ours; see "Readings" in docs/concepts.md.

    Args:
        alignment (`Alignment`): the member's vocabulary onto the union vocabulary.
        store (`ProbabilityStore`): the probabilities after each reading.

    Attributes:
        totals (`torch.FloatTensor` or `None`): `Z` of the readings with a tail, from the last call of `of`.
    """

    def __init__(self, alignment: Alignment, store: ProbabilityStore) -> None:
        self.alignment = alignment
        self.store = store
        self.totals: torch.Tensor | None = None
        self._places: dict[int, tuple[Reading, int]] = {}
        self._buffer: torch.Tensor | None = None
        self._columns: torch.Tensor | None = None
        if alignment.columns is not None:
            self._columns = alignment.columns.to(store.device)
        else:
            self._gather = alignment.gather.to(store.device)
            self._cleared = alignment.cleared.to(store.device)
            self._moved_from = alignment.moved_from.to(store.device)
            self._moved_to = alignment.moved_to.to(store.device)

    def place_of(self, reading: Reading) -> int | None:
        """The index of a reading's `Z` in `totals`; `None` if the last call of `of` did not compute it."""
        known = self._places.get(id(reading))
        return known[1] if known is not None and known[0] is reading else None

    def of(self, rows: Sequence[RowReadings], in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The member's next-token probabilities in each row.

        `P(u) = sum_i a_i / Z_i * sum_{v: bytes after tail_i -> u} p(v | ids_i)`, see "The next token" in
        docs/concepts.md, "Readings".

        Args:
            rows (`Sequence[RowReadings]`): B rows.
            in_place (`bool`): whether the next call may write into the tensor that this one returns.

        Returns:
            `tuple[torch.FloatTensor, torch.FloatTensor]`: fp32 probabilities of shape `(B, G)`, each row summing to 1,
            and, of shape `(B,)`, the log of the sum of exponentials of the logits of the reading with the largest `a`.
            A row without next-token mass has probabilities 0 and `-inf`.
        """
        self._places, self.totals = {}, None
        store, heads = self.store, [row.readings[0] if row.readings else None for row in rows]
        if all(head is not None and not head.tail and head.weight == 1.0 for head in heads):
            # the usual case: one reading per row, without a tail
            entries = [head.entry for head in heads if head is not None]
            index = upload(entries, store.device)
            return self._spread(entries, index, in_place), store.log_z[index]
        log_z = store.log_z[upload([0 if head is None else head.entry for head in heads], store.device)]
        ended = [[reading for reading in row.readings if not reading.tail] for row in rows]
        if any(len(readings) > 1 for readings in ended):
            probs = self._spread_several(ended)
        else:
            entries = [readings[0].entry if readings else 0 for readings in ended]
            probs = self._spread(entries, upload(entries, store.device), in_place)
        tails = [(row, reading) for row, state in enumerate(rows) for reading in state.readings if reading.tail]
        if not tails:
            is_empty = upload([head is None for head in heads], store.device)
            return probs, log_z.masked_fill(is_empty, -torch.inf)
        held = [sum((reading.weight for reading in readings), 0.0) for readings in ended]
        total = self._add_tails(probs, held, tails)
        return probs, log_z.masked_fill(total == 0, -torch.inf)

    def _spread_several(self, ended: Sequence[Sequence[Reading]]) -> torch.Tensor:
        """The mean probabilities of the readings without a tail of each row, by their `a`: shape `(B, G)`."""
        entries = [reading.entry for readings in ended for reading in readings]
        found = self._spread(entries, upload(entries, self.store.device), False)
        shares = [reading.weight / sum(r.weight for r in readings) for readings in ended for reading in readings]
        rows = [row for row, readings in enumerate(ended) for _ in readings]
        probs = found.new_zeros(len(ended), found.shape[1])
        weighted = found * upload(shares, found.device)[:, None]
        return probs.index_add_(0, upload(rows, found.device), weighted)

    def _add_tails(
        self, probs: torch.Tensor, held: Sequence[float], tails: Sequence[tuple[int, Reading]]
    ) -> torch.Tensor:
        """Adds the readings with a tail to the probabilities of the reading without one, in place.

        Args:
            probs (`torch.FloatTensor` of shape `(B, G)`): probabilities of each row's reading without a tail; 0 if
                there is none.
            held (`Sequence[float]`): its `a` in each row; 0 if there is none.
            tails (`Sequence[tuple[int, Reading]]`): row and reading of all readings with a tail.

        Returns:
            `torch.FloatTensor` of shape `(B,)`: for each row, the sum of the `a` of the readings that some token can
            continue.
        """
        store, device = self.store, self.store.device
        maps = [self.alignment.tail_map(reading.tail, reading.lent) for _, reading in tails]
        counts = [len(tail_map.member_ids) for tail_map in maps]
        placed = [tail_map.placed.on(device) for tail_map in maps]
        # per reading: offset of its entry in the flattened store, offset of its row in flattened `probs`, index, row,
        # number of tokens
        numbers = [
            *(reading.entry * store.width for _, reading in tails),
            *(row * probs.shape[1] for row, _ in tails),
            *range(len(tails)),
            *(row for row, _ in tails),
            *counts,
        ]
        table = upload(numbers, device).view(5, -1)
        row_of = table[3]
        spread = table[:3].repeat_interleave(table[4], 1, output_size=sum(counts))
        # one element per (reading, token that starts with its tail), so that all readings need one gather and one add
        source = torch.cat([ids for ids, _ in placed]) + spread[0]
        target = torch.cat([columns for _, columns in placed]) + spread[1]
        segment = spread[2]
        values = store.take(source)
        z = torch.zeros(len(tails), device=device).index_add_(0, segment, values)
        # a reading that no token can continue (Z = 0) is left out; the `a` of the others are renormalised by `total`
        weights, share = upload([*held, *(reading.weight for _, reading in tails)], device).split(
            [len(held), len(tails)]
        )
        share = share.masked_fill(z == 0, 0.0)
        total = weights.index_add(0, row_of, share)
        tiny = torch.finfo(z.dtype).tiny  # 0 / tiny is 0, where 0 / 0 would be NaN
        probs.mul_((weights / total.clamp(min=tiny))[:, None])
        share = share / (z * total[row_of]).clamp(min=tiny)
        probs.view(-1).index_add_(0, target, values * share[segment])
        self._places = {id(reading): (reading, k) for k, (_, reading) in enumerate(tails)}
        self.totals = z
        return total

    def _spread(self, entries: Sequence[int], index: torch.Tensor, in_place: bool) -> torch.Tensor:
        """The probabilities of store entries, mapped to the union vocabulary: shape `(B, G)`.

        Args:
            entries (`Sequence[int]`), index (`torch.LongTensor` of shape `(B,)`): the entries, on the host and on the
                device.
            in_place (`bool`): see `of`.
        """
        if self._columns is not None:
            lent = self.store.probs.new_zeros(len(entries), self.alignment.union.num_columns)
            return lent.index_add_(1, self._columns, self.store.probs[index])
        probs = self._buffer
        if not in_place or probs is None or len(probs) != len(entries):
            probs = self.store.probs.new_empty(len(entries), len(self._gather))
            self._buffer = probs if in_place else None  # reused, because new memory costs page faults
        copied = self.alignment.copied
        if not goes_row_by_row(self.store.probs):
            rows = self.store.probs[index]
            if copied:
                probs[:, :copied] = rows[:, :copied]
            else:
                torch.index_select(rows, 1, self._gather, out=probs)
        else:
            for row, entry in enumerate(entries):
                if copied:
                    probs[row, :copied] = self.store.probs[entry, :copied]
                else:
                    torch.index_select(self.store.probs[entry], 0, self._gather, out=probs[row])
        if copied:
            probs[:, copied:] = 0.0
            if len(self._cleared):
                probs.index_fill_(1, self._cleared, 0.0)
        if len(self._moved_from):
            places = index[:, None] * self.store.width + self._moved_from
            probs.index_add_(1, self._moved_to, self.store.take(places))
        return probs
