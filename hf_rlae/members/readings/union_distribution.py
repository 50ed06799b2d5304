"""What a member says over the union vocabulary, given its readings of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.members.readings.probability_store import ProbabilityStore, goes_row_by_row
from hf_rlae.members.readings.state import Reading, RowReadings
from hf_rlae.vocabulary import Alignment


class UnionDistribution:
    """Carries next-token probabilities from a member's own tokens over to the union vocabulary.

    Source: ours; see "Readings" in the documentation of concepts.

    Args:
        alignment (`Alignment`): the member's vocabulary onto the union vocabulary.
        store (`ProbabilityStore`): where the readings' probabilities are kept.

    Attributes:
        totals (`torch.FloatTensor` or `None`): `Z` of the readings with a tail, as the last call summed them.
    """

    def __init__(self, alignment: Alignment, store: ProbabilityStore) -> None:
        self.alignment = alignment
        self.store = store
        self.totals: torch.Tensor | None = None
        self._places: dict[int, tuple[Reading, int]] = {}
        self._buffer: torch.Tensor | None = None
        self._gather = alignment.gather.to(store.device)
        self._cleared = alignment.cleared.to(store.device)
        self._moved_from = alignment.moved_from.to(store.device)
        self._moved_to = alignment.moved_to.to(store.device)

    def place_of(self, reading: Reading) -> int | None:
        """Where in `totals` a reading's `Z` is; `None` if the last call did not sum it."""
        known = self._places.get(id(reading))
        return known[1] if known is not None and known[0] is reading else None

    def of(self, rows: Sequence[RowReadings], in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The member's next-token probabilities after each row.

        Rule 1: `P(u) = sum_i a_i / Z_i * sum_{v: bytes after tail_i -> u} p(v | ids_i)`.

        Args:
            rows (`Sequence[RowReadings]`): B rows.
            in_place (`bool`): whether the next call may write into the tensor that this one returns.

        Returns:
            fp32 probabilities of shape `(B, V)`, each row summing to 1, and the log of the sum of exponentials of the
            heaviest reading's logits, shape `(B,)`. A row in which the member has nothing to say is all 0 with
            `-inf`.
        """
        store, device = self.store, self.store.device
        heads = [row.readings[0] if row.readings else None for row in rows]
        self._places, self.totals = {}, None
        if all(head is not None and not head.tail and head.weight == 1.0 for head in heads):
            entries = [head.entry for head in heads if head is not None]
            return self._spread(entries, in_place), store.log_z[entries]
        ends = [next((r for r in row.readings if not r.tail), None) for row in rows]
        probs = self._spread([0 if r is None else r.entry for r in ends], in_place)
        weights = torch.tensor([0.0 if r is None else r.weight for r in ends], device=device)
        tails = [(i, r) for i, row in enumerate(rows) for r in row.readings if r.tail]
        entries = [0 if head is None else head.entry for head in heads]
        if not tails:
            silent = torch.tensor([head is None for head in heads], device=device)
            return probs, store.log_z[entries].masked_fill(silent, -torch.inf)
        maps = [self.alignment.tail_map(r.tail) for _, r in tails]
        counts = torch.tensor([len(m.member_ids) for m in maps])
        table = torch.tensor([[r.entry * store.width, i * probs.shape[1], i, k] for k, (i, r) in enumerate(tails)])
        spread = table.repeat_interleave(counts, 0)
        source = (torch.cat([m.member_ids for m in maps]) + spread[:, 0]).to(device)
        target = (torch.cat([m.union_ids for m in maps]) + spread[:, 1]).to(device)
        segment, row_of = spread[:, 3].to(device), table[:, 2].to(device)
        values = store.take(source)
        z = torch.zeros(len(tails), device=device).index_add_(0, segment, values)
        share = torch.tensor([r.weight for _, r in tails], device=device).masked_fill(z == 0, 0.0)
        total = weights.index_add(0, row_of, share)
        share = share / (z * total[row_of]).clamp(min=torch.finfo(z.dtype).tiny)
        if any(r is not None for r in ends):
            probs.mul_((weights / total.clamp(min=torch.finfo(z.dtype).tiny))[:, None])
        probs.view(-1).index_add_(0, target, values * share[segment])
        self._places = {id(r): (r, k) for k, (_, r) in enumerate(tails)}
        self.totals = z
        return probs, store.log_z[entries].masked_fill(total == 0, -torch.inf)

    def _spread(self, entries: Sequence[int], in_place: bool) -> torch.Tensor:
        """The probabilities of entries over the union vocabulary: shape `(B, V)`."""
        probs = self._buffer
        if not in_place or probs is None or len(probs) != len(entries):
            probs = self.store.probs.new_empty(len(entries), len(self._gather))  # memory that is new costs page faults
            self._buffer = probs if in_place else None
        copied = self.alignment.copied
        if not goes_row_by_row(self.store.probs):
            rows = self.store.probs[torch.tensor(entries, device=self.store.device)]
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
            places = torch.tensor(entries, device=self.store.device)[:, None] * self.store.width + self._moved_from
            probs.index_add_(1, self._moved_to, self.store.take(places))
        return probs
