"""A member's state in the rows of a batch: its readings, and the text that it has not read yet."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rlae.members.ragged_run import Chain
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
    """

    __slots__ = ("cached", "is_exhausted", "kept", "pending", "readings", "settled", "unread")

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

    @property
    def may_be_empty(self) -> bool:
        """Whether the member may have no next-token mass: no reading is without a tail, or there are no readings."""
        return all(reading.tail for reading in self.readings)


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


def taken_back(now: RowReadings, then: RowReadings) -> RowReadings:
    """The earlier row `then`, with the ids that are in the cache now."""
    start = then.settled.length
    kept = min(now.kept, then.kept)
    cached: tuple[int, ...] = ()
    if kept > start:
        held = (now.settled.after(start) + now.cached)[: now.kept - start]
        cached = then.cached[: common_length(held, then.cached)]
        kept = start + len(cached)
    return RowReadings(then.settled, then.readings, then.pending, then.unread, cached, kept, then.is_exhausted)
