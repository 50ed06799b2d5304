"""One member's vocabulary on the union vocabulary: which column receives the mass of each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from hf_rlae.sharing import SharedInCopies
from hf_rlae.transfers import Placed
from hf_rlae.vocabulary.token_bytes import ByteVocabulary
from hf_rlae.vocabulary.union import OUTSIDE, UnionVocabulary

MAX_TARGETS = 65536
"""Number of targets that an alignment caches; a full cache is cleared."""


Lent = tuple[int, int]
"""A restriction on an unfinished token, as (position, length): the longest string of the union that begins its bytes
from the position on has this length. So the token was lent to that string, and to no longer one."""


@dataclass(frozen=True)
class TailMap:
    """Maps the tokens that start with a tail, and are longer, to columns of the union vocabulary.

    A token is left out if no string of the union is a prefix of its bytes after the tail. `N` is the number of the
    others.

    Attributes:
        member_ids (`torch.LongTensor` of shape `(N,)`): the tokens, sorted by their bytes.
        columns (`torch.LongTensor` of shape `(N,)`): the column of the string that equals the bytes after the tail
            ("whole"), else of the longest string that is a prefix of these bytes ("unfinished").
        whole (`torch.BoolTensor` of shape `(N,)`): which tokens are whole.
        placed (`Placed`): `member_ids` and `columns` on the devices that need them.
    """

    member_ids: torch.Tensor
    columns: torch.Tensor
    whole: torch.Tensor
    placed: Placed = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "placed", Placed(self.member_ids, self.columns))


class Tokens:
    """Some of a member's ids, in a fixed order.

    Args:
        table (`Placed`): a vector of ids.
        lo, hi (`int`): the range of the table.
    """

    __slots__ = ("hi", "lo", "table")

    def __init__(self, table: Placed, lo: int, hi: int) -> None:
        self.table = table
        self.lo = lo
        self.hi = hi

    def __len__(self) -> int:
        return self.hi - self.lo

    def on(self, device: torch.device) -> torch.Tensor:
        """The ids on a device, as a view of the table there."""
        return self.table.on(device)[0][self.lo : self.hi]


@dataclass(frozen=True)
class Boundary:
    """A boundary between canonical ids, after which the member may be inside a longer token.

    Attributes:
        after (`int`): number of canonical ids before the boundary.
        rest (`bytes`): the bytes after the boundary. They are the tail of the unfinished token.
        stays (`Tokens`): the tokens that start with `rest` and are longer.
    """

    after: int
    rest: bytes
    stays: Tokens


@dataclass(frozen=True)
class Canonical:
    """The ids that the tokenizer itself writes for a tail and new bytes.

    Attributes:
        ids (`tuple[int, ...]`): the ids.
        is_path (`bool`): whether the first id is a token that the reading can end with.
        boundaries (`tuple[Boundary, ...]`): the boundaries between the ids from which a longer token is possible.
        open (`Boundary` or `None`): an incomplete character at the end, if no tokens stand for its bytes and some
            tokens start with them.
    """

    ids: tuple[int, ...]
    is_path: bool
    boundaries: tuple[Boundary, ...]
    open: Boundary | None


class Target:
    """The ways in which a reading with a given tail can continue with new bytes.

    Their probabilities are summed in parts, in this order: one part per id of `ends`; `first`; `unfinished`; `stays`.

    Args:
        ends (`tuple[int, ...]`): the ids whose bytes are the tail and the new bytes.
        first (`tuple[int, ...]`): the first canonical id; empty if there are ends.
        unfinished (`Tokens` or `None`): the tokens whose mass the union token of the new bytes receives because they
            are longer.
        stays (`Tokens`): the tokens that start with the tail and the new bytes and are longer.
        find_canonical (callable): computes `canonical` on first access.

    Attributes:
        single (`tuple[int, ...]`): the ids of the first parts, which have one id each: `ends`, or else `first`.
        several (`tuple[tuple[Tokens, int], ...]`): the other parts that are not empty, each with its number counted
            from the end of all parts.
        num_segments (`int`): number of parts.
        lends_all (`bool`): whether all tokens of `stays` were lent to the new bytes.
    """

    def __init__(
        self,
        ends: tuple[int, ...],
        first: tuple[int, ...],
        unfinished: Tokens | None,
        stays: Tokens,
        find_canonical: Callable[[], Canonical],
    ) -> None:
        self.ends = ends
        self.stays = stays
        self.single = ends or first
        self.several = tuple((tokens, at) for tokens, at in ((unfinished, -2), (stays, -1)) if tokens)
        self.num_segments = len(ends) + 3
        self.lends_all = (0 if unfinished is None else len(unfinished)) == len(stays)
        self._find_canonical = find_canonical

    @cached_property
    def canonical(self) -> Canonical:
        """The canonical ids and the boundaries between them."""
        return self._find_canonical()


class Alignment(SharedInCopies):
    """The alignment of one member's vocabulary onto the union vocabulary.

    Args:
        vocabulary (`ByteVocabulary`): the member's tokens.
        union (`UnionVocabulary`): the target.
        end_ids (`Sequence[int]`): the member's end-of-text and end-of-turn ids; STOP receives their mass.

    Attributes:
        columns (`torch.LongTensor` of shape `(V_m + 1,)` or `None`): the column that receives the mass of each id, if
            the grain is not `"token"`; then the attributes from `gather` to `moved_to` are missing.
        gather (`torch.LongTensor` of shape `(V,)`): for each union id the member's id with the same bytes, or `V_m` (a
            column of zeros that the caller appends) if the member has none.
        extra_from, extra_to (`torch.LongTensor` of shape `(E,)`): the member's other ids with bytes that `gather`
            already covers, and its other end ids, with the union ids that receive their mass.
        copied (`int`): number of leading union ids that equal the member's own ids. Their probabilities are copied,
            which is faster than gathering them; 0 if copying is not faster.
        cleared (`torch.LongTensor`): the copied ids that receive no mass.
        moved_from, moved_to (`torch.LongTensor`): the ids that are not copied, and the union ids that receive their
            mass.
        text_ids (`torch.LongTensor` of shape `(N,)`): the member's text ids, sorted by their bytes.
        excluded_ids (`torch.LongTensor`): ids that are neither text nor ends; they are not part of the mixture.
    """

    def __init__(self, vocabulary: ByteVocabulary, union: UnionVocabulary, end_ids: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self.union = union
        self.end_ids = tuple(sorted(set(end_ids)))
        ends = set(self.end_ids)
        self.text_ids = torch.tensor(vocabulary.sorted_ids, dtype=torch.long)
        self._text = Placed(self.text_ids)
        text_ends = [i for i in self.end_ids if vocabulary.pieces[i]]
        self._text_ends = torch.tensor(text_ends, dtype=torch.long) if text_ends else None
        excluded = [i for i, piece in enumerate(vocabulary.pieces) if not piece and i not in ends]
        self.excluded_ids = torch.tensor(excluded, dtype=torch.long)
        self._tails: dict[tuple[bytes, tuple[Lent, ...]], TailMap] = {}
        self._targets: dict[tuple[bytes, bytes, tuple[Lent, ...]], Target] = {}
        self.columns: torch.Tensor | None = None
        if union.written_ids is None:
            self._map_tokens(ends)
        else:
            self.columns = self._lend_tokens()

    def _lend_tokens(self) -> torch.Tensor:
        """The column of each id and of the appended zero; tokens without one have no probability."""
        tokens = self.tail_map(b"")
        columns = torch.zeros(self.vocabulary.size + 1, dtype=torch.long)
        columns[tokens.member_ids] = tokens.columns
        columns[torch.tensor(self.end_ids, dtype=torch.long)] = self.union.stop_column
        return columns

    def _map_tokens(self, ends: set[int]) -> None:
        """Maps tokens where every token is a string of the union."""
        vocabulary, union = self.vocabulary, self.union
        gather = torch.full((union.size,), vocabulary.size, dtype=torch.long)
        extra: list[tuple[int, int]] = []
        to = [union.id_of[piece] for piece in vocabulary.ids_of]
        frm = [ids[0] for ids in vocabulary.ids_of.values()]
        gather[torch.tensor(to, dtype=torch.long)] = torch.tensor(frm, dtype=torch.long)
        for piece, ids in vocabulary.ids_of.items():
            if len(ids) > 1 or ids[0] in ends:
                target, kept = union.id_of[piece], [i for i in ids if i not in ends]
                gather[target] = kept[0] if kept else vocabulary.size
                extra.extend((i, target) for i in kept[1:])
        if self.end_ids:
            gather[union.stop_id] = self.end_ids[0]
            extra.extend((i, union.stop_id) for i in self.end_ids[1:])
        self.gather = gather
        self.extra_from = torch.tensor([pair[0] for pair in extra], dtype=torch.long)
        self.extra_to = torch.tensor([pair[1] for pair in extra], dtype=torch.long)
        self.copied, self.cleared, self.moved_from, self.moved_to = self._find_copied(gather)

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

    def tail_map(self, tail: bytes, lent: tuple[Lent, ...] = ()) -> TailMap:
        """The `TailMap` of the tokens that start with `tail`, and that `lent` allows (cached)."""
        known = self._tails.get((tail, lent))
        if known is None:
            known = self._tails[tail, lent] = self._build_tail_map(tail, lent)
        return known

    def _build_tail_map(self, tail: bytes, lent: tuple[Lent, ...]) -> TailMap:
        lo, hi = self.vocabulary.range_of(tail)
        pieces, members = self.vocabulary.sorted_pieces[lo:hi], self.text_ids[lo:hi]
        if lent:
            allowed = [self._allows(piece, lent) for piece in pieces]
            pieces = [piece for piece, is_allowed in zip(pieces, allowed, strict=True) if is_allowed]
            members = members[torch.tensor(allowed, dtype=torch.bool)]
        start, find, prefix = len(tail), self.union.column_of.get, self.union.longest_prefix
        targets = torch.tensor([find(piece[start:], OUTSIDE) for piece in pieces], dtype=torch.long)
        whole = targets != OUTSIDE
        for index in (~whole).nonzero()[:, 0].tolist():
            targets[index] = find(prefix(pieces[index][start:]), OUTSIDE)
        inside = targets != OUTSIDE
        if self._text_ends is not None:
            inside &= ~torch.isin(members, self._text_ends)
        return TailMap(members[inside], targets[inside], whole[inside])

    def _allows(self, piece: bytes, lent: tuple[Lent, ...]) -> bool:
        """Whether a token can have been lent as `lent` says."""
        return all(len(self.union.longest_prefix(piece[at:])) == length for at, length in lent)

    def stays(self, begun: bytes, lent: tuple[Lent, ...] = ()) -> Tokens:
        """The text ids that start with `begun` and are longer, sorted by their bytes, and that `lent` allows."""
        lo, hi = self.vocabulary.range_of(begun)
        if not lent and (self._text_ends is None or lo == hi):
            return Tokens(self._text, lo, hi)
        ids = self.text_ids[lo:hi]
        if lent:
            pieces = self.vocabulary.sorted_pieces[lo:hi]
            ids = ids[torch.tensor([self._allows(piece, lent) for piece in pieces], dtype=torch.bool)]
        if self._text_ends is not None and len(ids):
            ids = ids[~torch.isin(ids, self._text_ends)]
        return Tokens(Placed(ids), 0, len(ids))

    def target(self, tail: bytes, raw: bytes, lent: tuple[Lent, ...] = ()) -> Target:
        """The ways in which a reading with the tail `tail` can continue with the bytes `raw` (cached)."""
        known = self._targets.get((tail, raw, lent))
        if known is None:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            known = self._targets[tail, raw, lent] = self._build_target(tail, raw, lent)
        return known

    def _build_target(self, tail: bytes, raw: bytes, lent: tuple[Lent, ...]) -> Target:
        whole = tail + raw
        ends = tuple(i for i in self.vocabulary.ids_of.get(whole, ()) if i not in self.end_ids)
        if lent and not self._allows(whole, lent):
            ends = ()
        find_canonical = partial(self._build_canonical, tail, whole, lent, bool(ends))
        first: tuple[int, ...] = ()
        if not ends:
            canonical = find_canonical()
            find_canonical = partial(_identity, canonical)
            first = canonical.ids[:1]
        unfinished: Tokens | None = None
        if tail or self.columns is not None:
            tokens = self.tail_map(tail, lent)
            column = self.union.column_of.get(raw, OUTSIDE)
            ids = tokens.member_ids[(tokens.columns == column) & ~tokens.whole]
            unfinished = Tokens(Placed(ids), 0, len(ids)) if len(ids) else None
        return Target(ends, first, unfinished, self.stays(whole, lent), find_canonical)

    def _build_canonical(self, tail: bytes, whole: bytes, lent: tuple[Lent, ...], has_ends: bool) -> Canonical:
        body, half = whole, _half_character(whole)
        half_stays: Tokens | None = None
        if half and not has_ends and not all(bytes([byte]) in self.vocabulary.ids_of for byte in half):
            half_stays = self.stays(half)
            if half_stays:
                body = whole[: len(whole) - len(half)]
            else:
                half_stays = None
        ids = self.vocabulary.canonical_ids(body)
        pieces = [self.vocabulary.pieces[i] or b"" for i in ids]
        boundaries = []
        rest = b"".join(pieces)
        for after, piece in enumerate(pieces[:-1], 1):
            rest = rest[len(piece) :]
            # a longer token from this boundary covers the incomplete character at the end, too
            begun = rest if half_stays is None else rest + half
            stays = self.stays(begun)
            if stays:
                boundaries.append(Boundary(after, begun, stays))
        is_path = bool(pieces) and pieces[0].startswith(tail) and len(pieces[0]) > len(tail)
        is_path = is_path and self._allows(pieces[0], lent)
        return Canonical(
            ids, is_path, tuple(boundaries), None if half_stays is None else Boundary(len(ids), half, half_stays)
        )


def _identity(canonical: Canonical) -> Canonical:
    return canonical


def _half_character(raw: bytes) -> bytes:
    """The bytes of an incomplete UTF-8 character at the end of `raw`."""
    for length in range(1, min(3, len(raw)) + 1):
        byte = raw[-length]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return raw[-length:] if length < needed else b""
        if byte < 0x80:
            break
    return b""
