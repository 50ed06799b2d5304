"""A member's state in the rows of a batch: its readings, and the text that it has not read yet."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rlae.members.paths import Chain
from hf_rlae.vocabulary import Lent

_EMPTY = Chain()


class Reading:
    """One possible tokenisation of the text so far by the member; immutable once it is part of a row.

    Attributes:
        ids (`tuple[int, ...]`): the member's own ids after the settled ids of the row.
        tail (`bytes`): the bytes that the next, unfinished token already has.
        weight (`float`): the probability `a` of the reading; the probabilities of a row sum to 1.
        entry (`int`): the store entry of the member's next-token probabilities after `ids`.
        lent (`tuple[Lent, ...]`): what is known of the unfinished token besides its first bytes, see `Lent`.
    """

    __slots__ = ("entry", "ids", "lent", "tail", "weight")

    def __init__(
        self, ids: tuple[int, ...], tail: bytes, weight: float, entry: int, lent: tuple[Lent, ...] = ()
    ) -> None:
        self.ids = ids
        self.tail = tail
        self.weight = weight
        self.entry = entry
        self.lent = lent


class RowReadings:
    """A member's state in one row; immutable, so that beams can share it.

    Attributes:
        settled (`Chain`): the ids that all readings share.
        readings (`tuple[Reading, ...]`): the readings, with the largest `a` first; empty before the prompt is read.
        pending (`bytes`): text that the member has not read yet.
        unread (`tuple[int, ...]`): the prompt, until it is read.
        cached (`tuple[int, ...]`): the ids after `settled` that are in the key-value cache.
        kept (`int`): number of ids of `settled` and `cached` that are in the cache; less than the length of `settled`
            if the cache was filled along a path that was dropped.
        is_exhausted (`bool`): whether the row has outgrown the member's context.
        may_be_empty (`bool`): whether the member may have no next-token mass: no reading is without a tail, or there
            are no readings.
    """

    __slots__ = ("cached", "is_exhausted", "kept", "may_be_empty", "pending", "readings", "settled", "unread")

    def __init__(
        self,
        settled: Chain = _EMPTY,
        readings: tuple[Reading, ...] = (),
        pending: bytes = b"",
        unread: tuple[int, ...] = (),
        cached: tuple[int, ...] = (),
        kept: int = 0,
        is_exhausted: bool = False,
    ) -> None:
        self.settled = settled
        self.readings = readings
        self.pending = pending
        self.unread = unread
        self.cached = cached
        self.kept = kept
        self.is_exhausted = is_exhausted
        self.may_be_empty = b"" not in [reading.tail for reading in readings]

    def deferred(self, raw: bytes) -> RowReadings:
        """The row with more text that the member has not read yet."""
        return RowReadings(
            self.settled, self.readings, self.pending + raw, self.unread, self.cached, self.kept, self.is_exhausted
        )

    def cached_to(self, cached: tuple[int, ...], kept: int) -> RowReadings:
        """The row after the model has read other ids; its readings are the same."""
        return RowReadings(self.settled, self.readings, self.pending, self.unread, cached, kept, self.is_exhausted)

    def taken_back(self, now: RowReadings) -> RowReadings:
        """This earlier state of a row, with the ids that are in the cache `now`."""
        start = self.settled.length
        kept = min(now.kept, self.kept)
        cached: tuple[int, ...] = ()
        if kept > start:
            held = (now.settled.after(start) + now.cached)[: now.kept - start]
            cached = self.cached[: common_length(held, self.cached)]
            kept = start + len(cached)
        return self.cached_to(cached, kept)

    def ended(self, ids: tuple[int, ...], entry: int) -> RowReadings:
        """The row with one reading without a tail, after `ids`, which are now in the cache: `renewed`, but faster."""
        length = self.settled.length + len(ids)
        return RowReadings(Chain(self.settled, ids), (Reading((), b"", 1.0, entry),), b"", (), (), length)

    def renewed(self, read: tuple[int, ...], readings: list[Reading]) -> RowReadings:
        """The row with new readings, whose common ids are settled; `read` are the ids that are now in the cache."""
        cached, kept = self.cached, self.kept
        if read:
            cached = read
            kept = self.settled.length + len(cached)
        shared = readings[0].ids
        for reading in readings[1:]:
            shared = shared[: common_length(shared, reading.ids)]
        settled = self.settled.plus(shared)
        if shared:
            for reading in readings:
                reading.ids = reading.ids[len(shared) :]
            if kept >= self.settled.length:
                common = len(shared) if cached is shared else common_length(cached, shared)
                most = settled.length + len(cached) if common == len(shared) else self.settled.length + common
                kept = min(kept, most)
            cached = cached[len(shared) :]
        return RowReadings(settled, tuple(readings), b"", (), cached, kept)


class Update:
    """New text of a row, and the shares of the members that proposed it; immutable.

    Attributes:
        raw (`bytes`): the new bytes.
        r (`float`): the share of the token's probability that members with this tokenizer proposed whole.
        q (`float`): the share that they proposed as the start of a longer token. `o = 1 - r - q` is the share of the
            members with other tokenizers.
    """

    __slots__ = ("q", "r", "raw")

    def __init__(self, raw: bytes, r: float = 0.0, q: float = 0.0) -> None:
        self.raw = raw
        self.r = r
        self.q = q


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two sequences of ids."""
    count = 0
    if first and second:
        for one, other in zip(first, second, strict=False):
            if one != other:
                break
            count += 1
    return count
