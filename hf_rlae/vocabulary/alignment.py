"""One member's vocabulary on the union vocabulary: where the mass of each of its tokens goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from hf_rlae.vocabulary.token_bytes import ByteVocabulary
from hf_rlae.vocabulary.union import OUTSIDE, UnionVocabulary

MAX_TARGETS = 65536
"""How many targets an alignment keeps before it begins anew."""


@dataclass(frozen=True)
class TailMap:
    """Where the tokens that begin with a tail, and are longer, go in the union vocabulary.

    Tokens whose remaining bytes no union token begins are left out; `N` is the number of the others.

    Attributes:
        member_ids (`torch.LongTensor` of shape `(N,)`): the tokens, in the order of their bytes.
        union_ids (`torch.LongTensor` of shape `(N,)`): the union token that the bytes after the tail are
            ("whole") or the longest one that begins them ("unfinished").
        whole (`torch.BoolTensor` of shape `(N,)`): which are whole.
    """

    member_ids: torch.Tensor
    union_ids: torch.Tensor
    whole: torch.Tensor


@dataclass(frozen=True)
class Boundary:
    """A place inside canonical ids where another token may not have ended.

    Attributes:
        after (`int`): how many of the canonical ids come before it.
        rest (`bytes`): the bytes after it, which an unfinished token would already have.
        stay_ids (`torch.LongTensor`): the tokens that begin with `rest` and are longer.
    """

    after: int
    rest: bytes
    stay_ids: torch.Tensor


@dataclass(frozen=True)
class Canonical:
    """The ids that the tokenizer itself would write for a tail and further bytes.

    Attributes:
        ids (`tuple[int, ...]`): these ids.
        is_path (`bool`): whether the first one begins with the tail and is longer.
        boundaries (`tuple[Boundary, ...]`): places inside where tokens can go on.
        open (`Boundary` or `None`): half a character at the end, which no token stands for, but some begin with.
    """

    ids: tuple[int, ...]
    is_path: bool
    boundaries: tuple[Boundary, ...]
    open: Boundary | None


class Target:
    """How a reading with some tail can take further bytes.

    Args:
        ends (`tuple[int, ...]`): the ids whose bytes are the tail and the new bytes.
        parts (`Sequence[torch.LongTensor]`): the ids whose probabilities are to be summed: one part for each of
            `ends`, then the first canonical id (empty where there are ends), the tokens that lend their mass to the
            new bytes ("unfinished"), and the tokens that begin with tail and new bytes and are longer ("stays").
        find_canonical (callable): makes `canonical` when it is first needed.

    Attributes:
        ids, segments (`torch.LongTensor`): the parts in one, and which part each id belongs to.
        num_segments (`int`): number of parts.
        goes_on (`bool`): whether some token begins with tail and new bytes and is longer.
    """

    def __init__(
        self, ends: tuple[int, ...], parts: Sequence[torch.Tensor], find_canonical: Callable[[], Canonical]
    ) -> None:
        self.ends = ends
        self.ids = torch.cat(list(parts))
        self.segments = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
        self.num_segments = len(parts)
        self.goes_on = len(parts[-1]) > 0
        self._find_canonical = find_canonical

    @cached_property
    def canonical(self) -> Canonical:
        """The canonical ids, with the boundaries inside."""
        return self._find_canonical()


class Alignment:
    """One member's vocabulary onto the union vocabulary.

    Args:
        vocabulary (`ByteVocabulary`): the member's tokens.
        union (`UnionVocabulary`): the target.
        end_ids (`Sequence[int]`): the member's end-of-text and end-of-turn ids, whose mass STOP receives.

    Attributes:
        gather (`torch.LongTensor` of shape `(V,)`): for each union id the member's id with those bytes, or
            `V_m` (a column of zeros that the caller appends) where the member has none.
        extra_from, extra_to (`torch.LongTensor` of shape `(E,)`): further member ids with the same bytes as
            another one, and end ids, with the union ids that receive their mass.
        copied (`int`): the first so many union ids are the member's own ids, so that their probabilities can be copied
            instead of gathered; 0 where it does not pay.
        cleared (`torch.LongTensor`): which of those have no mass of their own; `moved_from`, `moved_to` say where the
            mass of all ids goes that are not copied.
        text_ids (`torch.LongTensor` of shape `(N,)`): the member's text ids in the order of their bytes.
        excluded_ids (`torch.LongTensor`): ids that are neither text nor ends; they have no part in the mixture.
    """

    def __init__(self, vocabulary: ByteVocabulary, union: UnionVocabulary, end_ids: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self.union = union
        self.end_ids = tuple(sorted(set(end_ids)))
        ends = set(self.end_ids)
        gather = torch.full((union.size,), vocabulary.size, dtype=torch.long)
        extra: list[tuple[int, int]] = []
        to, frm = [], []
        for piece, ids in vocabulary.ids_of.items():
            target = union.id_of[piece]
            kept = [i for i in ids if i not in ends] if ends else ids
            if kept:
                to.append(target)
                frm.append(kept[0])
                extra.extend((i, target) for i in kept[1:])
        gather[torch.tensor(to, dtype=torch.long)] = torch.tensor(frm, dtype=torch.long)
        if self.end_ids:
            gather[union.stop_id] = self.end_ids[0]
            extra.extend((i, union.stop_id) for i in self.end_ids[1:])
        self.gather = gather
        self.extra_from = torch.tensor([pair[0] for pair in extra], dtype=torch.long)
        self.extra_to = torch.tensor([pair[1] for pair in extra], dtype=torch.long)
        self.text_ids = torch.tensor(vocabulary.sorted_ids, dtype=torch.long)
        text_ends = [i for i in self.end_ids if vocabulary.pieces[i]]
        self._text_ends = torch.tensor(text_ends, dtype=torch.long) if text_ends else None
        silent = [i for i, piece in enumerate(vocabulary.pieces) if not piece and i not in ends]
        self.excluded_ids = torch.tensor(silent, dtype=torch.long)
        self.copied, self.cleared, self.moved_from, self.moved_to = self._find_copied(gather)
        self._tails: dict[bytes, TailMap] = {}
        self._targets: dict[tuple[bytes, bytes], Target] = {}

    def _find_copied(self, gather: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
        size = self.vocabulary.size
        head = min(size, self.union.size)
        own = torch.arange(head)
        differs = ((gather[:head] != own) & (gather[:head] != size)).nonzero()
        copied = int(differs[0]) if len(differs) else head
        rest = copied + (gather[copied:] != size).nonzero()[:, 0]
        if 2 * copied < size or len(rest) > size // 16:
            copied, rest = 0, rest[:0]
        cleared = (gather[:copied] == size).nonzero()[:, 0]
        cleared = cleared[~torch.isin(cleared, self.excluded_ids)]
        return copied, cleared, torch.cat([gather[rest], self.extra_from]), torch.cat([rest, self.extra_to])

    def tail_map(self, tail: bytes) -> TailMap:
        """Where the tokens that begin with `tail` go (computed once per tail, then kept)."""
        known = self._tails.get(tail)
        if known is None:
            known = self._tails[tail] = self._build_tail_map(tail)
        return known

    def _build_tail_map(self, tail: bytes) -> TailMap:
        lo, hi = self.vocabulary.range_of(tail)
        start, find = len(tail), self.union.id_of.get
        pieces, members = self.vocabulary.sorted_pieces[lo:hi], self.text_ids[lo:hi]
        targets = torch.tensor([find(piece[start:], OUTSIDE) for piece in pieces], dtype=torch.long)
        whole = targets != OUTSIDE
        for index in (~whole).nonzero()[:, 0].tolist():
            targets[index] = self.union.longest_prefix(pieces[index][start:])
        inside = targets != OUTSIDE
        if self._text_ends is not None:
            inside &= ~torch.isin(members, self._text_ends)
        return TailMap(members[inside], targets[inside], whole[inside])

    def stay_ids(self, begun: bytes) -> torch.Tensor:
        """The text ids that begin with `begun` and are longer, in the order of their bytes."""
        lo, hi = self.vocabulary.range_of(begun)
        ids = self.text_ids[lo:hi]
        if self._text_ends is not None and len(ids):
            ids = ids[~torch.isin(ids, self._text_ends)]
        return ids

    def target(self, tail: bytes, raw: bytes) -> Target:
        """How a reading with the tail `tail` can take the bytes `raw` (computed once, then kept)."""
        known = self._targets.get((tail, raw))
        if known is None:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            known = self._targets[tail, raw] = self._build_target(tail, raw)
        return known

    def _build_target(self, tail: bytes, raw: bytes) -> Target:
        whole = tail + raw
        ends = tuple(i for i in self.vocabulary.ids_of.get(whole, ()) if i not in self.end_ids)
        find_canonical = partial(self._build_canonical, tail, whole, bool(ends))
        none = torch.empty(0, dtype=torch.long)
        parts = [torch.tensor([i]) for i in ends]
        if ends:
            parts.append(none)
        else:
            canonical = find_canonical()
            find_canonical = partial(_as_it_is, canonical)
            parts.append(torch.tensor(canonical.ids[:1], dtype=torch.long))
        if tail:
            tokens = self.tail_map(tail)
            union_id = self.union.id_of.get(raw, OUTSIDE)
            parts.append(tokens.member_ids[(tokens.union_ids == union_id) & ~tokens.whole])
        else:
            parts.append(none)
        return Target(ends, [*parts, self.stay_ids(whole)], find_canonical)

    def _build_canonical(self, tail: bytes, whole: bytes, has_ends: bool) -> Canonical:
        body, half, half_ids = whole, _half_character(whole), None
        if half and not has_ends and not all(bytes([byte]) in self.vocabulary.ids_of for byte in half):
            half_ids = self.stay_ids(half)
            if len(half_ids):
                body = whole[: len(whole) - len(half)]
            else:
                half_ids = None
        ids = self.vocabulary.canonical_ids(body)
        pieces = [self.vocabulary.pieces[i] or b"" for i in ids]
        boundaries = []
        rest = b"".join(pieces)
        for after, piece in enumerate(pieces[:-1], 1):
            rest = rest[len(piece) :]
            # a token that goes on past the end cannot begin before half a character that it does not have
            begun = rest if half_ids is None else rest + half
            stay_ids = self.stay_ids(begun)
            if len(stay_ids):
                boundaries.append(Boundary(after, begun, stay_ids))
        is_path = bool(pieces) and pieces[0].startswith(tail) and len(pieces[0]) > len(tail)
        return Canonical(
            ids, is_path, tuple(boundaries), None if half_ids is None else Boundary(len(ids), half, half_ids)
        )


def _as_it_is(canonical: Canonical) -> Canonical:
    return canonical


def _half_character(raw: bytes) -> bytes:
    """The bytes at the end of `raw` that begin a UTF-8 character without finishing it."""
    for length in range(1, min(3, len(raw)) + 1):
        byte = raw[-length]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return raw[-length:] if length < needed else b""
        if byte < 0x80:
            break
    return b""
