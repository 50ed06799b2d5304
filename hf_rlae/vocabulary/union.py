"""The union vocabulary of several tokenizers, and each member's alignment onto it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary.token_bytes import ByteVocabulary

OUTSIDE = -1
"""The union id of a token that has no place in the union (special tokens, bytes that no union token begins)."""


@dataclass(frozen=True)
class TailMap:
    """Where the tokens that begin with a tail, and are longer, go in the union vocabulary.

    The tokens are those at the positions `lo..hi` of the member's byte order; `N = hi - lo`.

    Attributes:
        lo (`int`), hi (`int`): the range in `ByteVocabulary.sorted_ids`.
        union_ids (`torch.LongTensor` of shape `(N,)`): the union token that the bytes after the tail are
            ("whole") or the longest one that begins them ("unfinished"); `OUTSIDE` where there is none.
        whole (`torch.BoolTensor` of shape `(N,)`): which are whole.
    """

    lo: int
    hi: int
    union_ids: torch.LongTensor
    whole: torch.BoolTensor


class UnionVocabulary:
    """The byte strings of all members' tokens plus one virtual STOP symbol.

    Ids `0 .. V_1 - 1` are the first member's own, id for id, so that its tokenizer encodes prompts; the byte
    strings that it lacks follow, and STOP is last. Where several ids of the first member stand for the same
    bytes, the one that its tokenizer writes carries the mass.

    Args:
        vocabularies (`Sequence[ByteVocabulary]`): one a tokenizer, the first member's first.

    Attributes:
        size (`int`): number of union ids, V.
        stop_id (`int`): the id of STOP, V - 1.
        pieces (`list[bytes | None]`): the bytes of each union id; `None` for ids without bytes.
        id_of (`dict[bytes, int]`): the union id that carries the mass of a byte string.

    Raises:
        TokenizerError: no vocabulary was given, or two of them have no byte in common.
    """

    def __init__(self, vocabularies: Sequence[ByteVocabulary]) -> None:
        if not vocabularies:
            raise TokenizerError("a union vocabulary needs at least one tokenizer, none was given")
        first = vocabularies[0]
        self.pieces: list[bytes | None] = list(first.pieces)
        self.id_of: dict[bytes, int] = {piece: ids[0] for piece, ids in first.ids_of.items()}
        for vocabulary in vocabularies[1:]:
            new = [piece for piece in vocabulary.ids_of if piece not in self.id_of]
            start = len(self.pieces)
            self.id_of.update(zip(new, range(start, start + len(new)), strict=True))
            self.pieces.extend(new)
        self.stop_id = len(self.pieces)
        self.pieces.append(None)
        self.size = len(self.pieces)
        self.max_piece = max(map(len, self.id_of), default=0)
        used = [set(b"".join(vocabulary.ids_of)) for vocabulary in vocabularies]
        for index, members_bytes in enumerate(used):
            if not used[0] & members_bytes:
                raise TokenizerError(
                    f"members 0 and {index} have no byte in common: no text could be written by both; "
                    "check that the tokenizers belong to the same language and kind of text"
                )

    def longest_prefix(self, raw: bytes) -> int:
        """The id of the longest union token that begins `raw`, or `OUTSIDE`."""
        for length in range(min(len(raw), self.max_piece), 0, -1):
            found = self.id_of.get(raw[:length])
            if found is not None:
                return found
        return OUTSIDE


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
        text_ids (`torch.LongTensor` of shape `(N,)`): the member's text ids in the order of their bytes.
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
        self._tails: dict[bytes, TailMap] = {}

    def tail_map(self, tail: bytes) -> TailMap:
        """Where the tokens that begin with `tail` go (computed once per tail, then kept)."""
        known = self._tails.get(tail)
        if known is None:
            known = self._tails[tail] = self._build_tail_map(tail)
        return known

    def _build_tail_map(self, tail: bytes) -> TailMap:
        lo, hi = self.vocabulary.range_of(tail)
        ids, whole = [], []
        ends = set(self.end_ids)
        for i, piece in zip(
            self.vocabulary.sorted_ids[lo:hi], self.vocabulary.sorted_pieces[lo:hi], strict=True
        ):
            rest = piece[len(tail) :]
            target = OUTSIDE if i in ends else self.union.id_of.get(rest)
            whole.append(target is not None and target != OUTSIDE)
            ids.append(self.union.longest_prefix(rest) if target is None else target)
        return TailMap(
            lo,
            hi,
            torch.tensor(ids, dtype=torch.long),  # type: ignore[arg-type]
            torch.tensor(whole, dtype=torch.bool),  # type: ignore[arg-type]
        )


def same_vocabulary(first: dict[str, int], second: dict[str, int]) -> bool:
    """Whether two tokenizers give every id the same token (`get_vocab()` of each).

    Byte maps are not compared: byte-fallback duplicates make identical tokenizers look different there.

    Example:

    >>> same_vocabulary({"a": 0}, {"a": 0}), same_vocabulary({"a": 0}, {"a": 1})
    (True, False)
    """
    return first is second or first == second
