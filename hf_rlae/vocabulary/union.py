"""The union vocabulary of several tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rlae.errors import TokenizerError
from hf_rlae.sharing import SharedInCopies
from hf_rlae.vocabulary.token_bytes import ByteVocabulary

OUTSIDE = -1
"""The union id of a token that is not in the union (special tokens, bytes of which no union token is a prefix)."""


class UnionVocabulary(SharedInCopies):
    """The byte strings of all members' tokens plus one virtual STOP symbol.

    The ids `0 .. V_1 - 1` are the first member's own ids, so that its tokenizer can encode prompts. The byte strings
    that the first member does not have follow, and STOP is last. If several ids of the first member have the same
    bytes, the id that its tokenizer writes receives the mass.

    Args:
        vocabularies (`Sequence[ByteVocabulary]`): one per tokenizer, the first member's first.

    Attributes:
        size (`int`): number of union ids, V.
        stop_id (`int`): the id of STOP, V - 1.
        pieces (`list[bytes | None]`): the bytes of each union id; `None` for ids without bytes.
        id_of (`dict[bytes, int]`): the union id that receives the mass of a byte string.

    Raises:
        TokenizerError: no vocabulary was given, or two of them have no byte in common.
    """

    def __init__(self, vocabularies: Sequence[ByteVocabulary]) -> None:
        if not vocabularies:
            raise TokenizerError("vocabularies is empty: a union vocabulary needs at least one tokenizer")
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
                    f"members 0 and {index} have no byte in common, so they cannot generate the same text; use members "
                    "whose tokenizers cover the same language and kind of text"
                )

    def longest_prefix(self, raw: bytes) -> int:
        """The id of the longest union token that is a prefix of `raw`, or `OUTSIDE`."""
        for length in range(min(len(raw), self.max_piece), 0, -1):
            found = self.id_of.get(raw[:length])
            if found is not None:
                return found
        return OUTSIDE


def same_vocabulary(first: dict[str, int], second: dict[str, int]) -> bool:
    """Whether two tokenizers have the same token for every id (`get_vocab()` of each).

    The tokens are compared, not their bytes: duplicates by byte fallback make the byte maps of equal tokenizers
    differ.

    Example:

    >>> same_vocabulary({"a": 0}, {"a": 0}), same_vocabulary({"a": 0}, {"a": 1})
    (True, False)
    """
    return first is second or first == second
