"""A hash of what the ids of a vocabulary stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def vocabulary_hash(pieces: Sequence[bytes | None]) -> str:
    """The SHA-256 of the byte strings of a vocabulary's ids, in their order.

    Two tokenizers have the same hash if every id stands for the same text. Ids without text (special tokens) count by
    their place. Those after the last id with text do not count: they are the padding of a model's embedding.

    Args:
        pieces (`Sequence[bytes | None]`): the bytes of each id, as in `ByteVocabulary.pieces` and
            `UnionVocabulary.pieces`; `None` for ids without text.

    Returns:
        `str`: 64 hexadecimal digits.

    Example:

    >>> vocabulary_hash([None, b"a"]) == vocabulary_hash([None, b"a", None])
    True
    >>> vocabulary_hash([b"ab", b"c"]) == vocabulary_hash([b"a", b"bc"])
    False
    """
    end = max((i for i, piece in enumerate(pieces) if piece), default=-1) + 1
    parts = [b"%d:%b" % (len(piece), piece) if piece else b"-" for piece in pieces[:end]]
    return hashlib.sha256(b"".join(parts)).hexdigest()
