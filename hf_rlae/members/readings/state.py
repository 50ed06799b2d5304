"""What a member knows of the rows of a batch: its readings, and what it has not read yet."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rlae.members.ragged_run import Chain

_EMPTY = Chain()


class Reading:
    """One way in which a member can have arrived at the text so far. Never changed once made.

    Attributes:
        ids (`tuple[int, ...]`): own ids after the row's settled ones.
        tail (`bytes`): bytes that the unfinished next token already has.
        weight (`float`): its probability, `a`; those of a row sum to 1.
        entry (`int`): where the store keeps the member's next-token probabilities after `ids`.
    """

    __slots__ = ("entry", "ids", "tail", "weight")

    def __init__(self, ids: tuple[int, ...], tail: bytes, weight: float, entry: int) -> None:
        self.ids = ids
        self.tail = tail
        self.weight = weight
        self.entry = entry


class RowReadings:
    """A member's state in one row. Never changed once made, so that beams can share it.

    Attributes:
        settled (`Chain`): ids that all readings share.
        readings (`tuple[Reading, ...]`): heaviest first; empty before the prompt has been read.
        pending (`bytes`): text that the member has not read yet.
        unread (`tuple[int, ...]`): the prompt, while it has not been read.
        cached (`tuple[int, ...]`): the ids after `settled` that are in the key-value cache.
        kept (`int`): how many ids of `settled` and `cached` the cache holds; fewer than `settled` has after a
            path that was left.
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
        """Whether there may be nothing to say: no reading is at a boundary, or there is none (unread, or left)."""
        return all(reading.tail for reading in self.readings)


class Update:
    """What was added to a row's text, and who proposed it. Never changed once made.

    Attributes:
        raw (`bytes`): the new bytes.
        r (`float`): the share of the token's probability that members with this tokenizer proposed whole.
        q (`float`): the share that they proposed as the beginning of a longer token; `1 - r - q` is the others'.
    """

    __slots__ = ("q", "r", "raw")

    def __init__(self, raw: bytes, r: float = 0.0, q: float = 0.0) -> None:
        self.raw = raw
        self.r = r
        self.q = q


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows share at the beginning."""
    count = 0
    if first and second:
        for one, other in zip(first, second, strict=False):
            if one != other:
                break
            count += 1
    return count


def taken_back(now: RowReadings, then: RowReadings) -> RowReadings:
    """The row `then`, with what the cache holds now."""
    start = then.settled.length
    kept = min(now.kept, then.kept)
    cached: tuple[int, ...] = ()
    if kept > start:
        held = (now.settled.after(start) + now.cached)[: now.kept - start]
        cached = then.cached[: common_length(held, then.cached)]
        kept = start + len(cached)
    return RowReadings(then.settled, then.readings, then.pending, then.unread, cached, kept, then.is_exhausted)
