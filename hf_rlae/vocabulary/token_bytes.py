"""Canonical bytes: the byte string of every token id of a tokenizer."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_rlae.errors import TokenizerError

PROBE = "The café paid 12 €: naïve 日本語, 😀👍🏽!\n\tdef f(x):  return x\n\n  É ß"
"""Text that every tokenizer must decode to the same text, except for characters that it has no token for."""

_ANCHORS = ("\n", "|", "a", "0", "▁", " ")


@lru_cache(maxsize=1)
def byte_level_alphabet() -> dict[str, int]:
    """The GPT-2 byte table: the printable character that stands for each byte in byte-level BPE.

    Source: public code of GPT-2 (printable bytes stand for themselves, the others are moved to the code points from 256
    on).

    Returns:
        `dict[str, int]`: the byte of each of the 256 characters.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return table


@lru_cache(maxsize=1)
def _byte_level_translation() -> dict[int, int]:
    """A table for `str.translate`: Latin-1 then encodes the result to the bytes, and fails for other characters."""
    alphabet = byte_level_alphabet()
    outside = {code: 0x10FFFF for code in range(256) if chr(code) not in alphabet}
    return outside | {ord(char): byte for char, byte in alphabet.items()}


def _component(component: Any) -> list[dict[str, Any]]:
    """A tokenizer component (decoder, pre-tokenizer, normalizer) as a flat list of its parts."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    flat: list[dict[str, Any]] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            nested = next(
                (part[k] for k in ("decoders", "pretokenizers", "normalizers") if isinstance(part.get(k), list)),
                None,
            )
            if nested is None:
                flat.append(part)
            else:
                for item in nested:
                    walk(item)

    walk(state)
    return flat


def prefix_successor(prefix: bytes) -> bytes | None:
    """The smallest byte string that is greater than every string with this prefix; `None` if there is none.

    Example:

    >>> prefix_successor(b"ab"), prefix_successor(b"a\\xff"), prefix_successor(b"\\xff")
    (b'ac', b'b', None)
    """
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return None
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


class _Spelling:
    """How a tokenizer writes bytes as token strings, read from its model, decoder and pre-tokenizer."""

    def __init__(self, backend: Any) -> None:
        model = backend.model
        decoders = _component(backend.decoder)
        kinds = {part.get("type") for part in decoders}
        splitters = _component(backend.pre_tokenizer)
        self.is_byte_level = "ByteLevel" in kinds or (
            not decoders and any(part.get("type") == "ByteLevel" for part in splitters)
        )
        self.has_fallback = "ByteFallback" in kinds or bool(getattr(model, "byte_fallback", False))
        self.replacements = [
            (part["pattern"]["String"], part["content"])
            for part in decoders
            if part.get("type") == "Replace" and "String" in part.get("pattern", {})
        ]
        self.replacements += [(part["replacement"], " ") for part in decoders if part.get("type") == "Metaspace"]
        self.prefix = getattr(model, "continuing_subword_prefix", None) or ""
        self.suffix = getattr(model, "end_of_word_suffix", None) or ""
        self.table = _byte_level_translation()

    def is_fallback(self, token: str) -> bool:
        """Whether a token stands for a single byte, like `<0x41>`."""
        return self.has_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def to_bytes(self, token: str) -> bytes:
        """The bytes that a token string stands for."""
        if self.prefix and token.startswith(self.prefix):
            token = token[len(self.prefix) :]
        if self.suffix and token.endswith(self.suffix):
            token = token[: -len(self.suffix)] + " "
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.is_byte_level:
            # the decoder keeps a token with a character outside the byte table unchanged
            with suppress(UnicodeEncodeError):
                return token.translate(self.table).encode("latin-1")
        return token.encode("utf-8", "surrogatepass")


class ByteVocabulary:
    """The byte string of every token id of one tokenizer, and the tokenisation of bytes.

    Byte-level BPE tokens are decoded with the GPT-2 byte table. In SentencePiece vocabularies `▁` is a space and, with
    byte fallback, `<0xNN>` is one byte. WordPiece continuations lose their `##`. Added tokens stand for their content.
    Special tokens, the unknown token and ids without a token have no bytes.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a tokenizer with a fast backend.
        size (`int`, *optional*): number of ids; at least `len(tokenizer)`, larger if the model's embedding is padded.

    Attributes:
        pieces (`list[bytes | None]`): the bytes of each id, `None` for ids that are not text.
        ids_of (`dict[bytes, list[int]]`): the ids of each byte string; the id that the tokenizer itself writes is
            first.
        sorted_ids (`list[int]`), sorted_pieces (`list[bytes]`): the text ids, sorted by their bytes, so that the tokens
            with a given prefix are one contiguous range.
        special_ids (`frozenset[int]`): ids that are not text.

    Raises:
        TokenizerError: the tokenizer has no fast backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerError(
                f"the tokenizer {type(tokenizer).__name__} has no fast backend, so the bytes of its tokens cannot be "
                "read; load it as a fast tokenizer (`AutoTokenizer.from_pretrained(..., use_fast=True)`)"
            )
        self._backend = backend
        self.size = max(size or 0, len(tokenizer))
        self.pieces, self.special_ids, fallback_ids = self._read_pieces(tokenizer)
        self.ids_of: dict[bytes, list[int]] = {}
        for i, piece in enumerate(self.pieces):
            if piece:
                self.ids_of.setdefault(piece, []).append(i)
        self.sorted_ids: list[int] = []
        self.sorted_pieces: list[bytes] = []
        for piece in sorted(self.ids_of):
            ids = self.ids_of[piece]
            if len(ids) > 1:
                ids.sort(key=lambda i: (i in fallback_ids, i))
            self.sorted_ids += ids
            self.sorted_pieces += [piece] * len(ids)
        self.max_piece = max(map(len, self.ids_of), default=0)
        self._canonical: dict[bytes, tuple[int, ...]] = {}
        self._has_char: dict[str, bool] = {}
        self._heads: dict[str, list[int]] = {}

    def _read_pieces(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[bytes | None], frozenset[int], set[int]]:
        """The bytes of every id, the ids without bytes, and the ids that are byte-fallback tokens."""
        backend = self._backend
        added, special, spelling = backend.get_added_tokens_decoder(), self._special_ids(tokenizer), _Spelling(backend)
        pieces: list[bytes | None] = [None] * self.size
        fallback_ids: set[int] = set()
        for token, i in backend.get_vocab(with_added_tokens=True).items():
            if i in special:
                continue
            if i in added:
                pieces[i] = added[i].content.encode("utf-8", "surrogatepass")
            elif spelling.is_fallback(token):
                pieces[i] = bytes([int(token[3:5], 16)])
                fallback_ids.add(i)
            else:
                pieces[i] = spelling.to_bytes(token)
        empty = {i for i, piece in enumerate(pieces) if not piece}
        return pieces, frozenset(empty), fallback_ids

    def _special_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """The ids that are not text: special tokens and the unknown token."""
        backend = self._backend
        added = backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        unknown, unigram_unknown = getattr(backend.model, "unk_token", None), getattr(backend.model, "unk_id", None)
        if isinstance(unknown, str):
            special.add(backend.token_to_id(unknown))
        if isinstance(unigram_unknown, int):
            special.add(unigram_unknown)
        special.discard(None)
        return special

    def range_of(self, prefix: bytes) -> tuple[int, int]:
        """The range `lo, hi` in `sorted_ids` of the tokens that start with `prefix` and are longer."""
        lo = bisect_left(self.sorted_pieces, prefix) + len(self.ids_of.get(prefix, ())) if prefix else 0
        end = prefix_successor(prefix)
        hi = len(self.sorted_pieces) if end is None else bisect_left(self.sorted_pieces, end)
        return lo, hi

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The concatenated bytes of `ids`; ids that are not text have none."""
        return b"".join(self.pieces[i] or b"" for i in ids)

    def has_char(self, char: str) -> bool:
        """Whether the tokenizer has one or several tokens for this character."""
        known = self._has_char.get(char)
        if known is None:
            raw = char.encode("utf-8", "surrogatepass")
            known = raw in self.ids_of or all(bytes([byte]) in self.ids_of for byte in raw)
            known = known or self._behind_anchor(char, raw) is not None
            self._has_char[char] = known
        return known

    def representable(self, raw: bytes) -> bytes:
        """`raw` without the characters and stray bytes that the tokenizer has no token for."""
        kept = []
        for char in raw.decode("utf-8", "surrogateescape"):
            if "\udc80" <= char <= "\udcff":
                byte = bytes([ord(char) - 0xDC00])
                kept.append(byte if byte in self.ids_of else b"")
            elif self.has_char(char):
                kept.append(char.encode())
        return b"".join(kept)

    def canonical_ids(self, raw: bytes) -> tuple[int, ...]:
        """The ids that the tokenizer itself writes for `raw` in the middle of a text.

        `raw` is tokenised after an anchor character, so that the tokenizer adds no space. If the ids do not decode to
        `raw` (incomplete characters, normalised characters, the name of a special token), the segmentation with the
        fewest tokens is used. Bytes that the tokenizer cannot represent are left out.

        Args:
            raw (`bytes`): any bytes.

        Returns:
            `tuple[int, ...]`: ids whose bytes are `representable(raw)`.
        """
        known = self._canonical.get(raw)
        if known is None:
            if len(self._canonical) > 65536:
                self._canonical.clear()
            text = self.representable(raw)
            known = self._canonical[raw] = self._tokenise(text) if text else ()
        return known

    def _tokenise(self, raw: bytes) -> tuple[int, ...]:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if text:
            ids = self._behind_anchor(text, raw)
            if ids is not None:
                return ids
        return self._longest_match(raw)

    def _behind_anchor(self, text: str, raw: bytes) -> tuple[int, ...] | None:
        for anchor in _ANCHORS:
            head = self._heads.get(anchor)
            if head is None:
                head = self._heads[anchor] = self._backend.encode(anchor, add_special_tokens=False).ids
            whole = self._backend.encode(anchor + text, add_special_tokens=False).ids
            ids = whole[len(head) :]
            if head and whole[: len(head)] == head and all(self.pieces[i] for i in ids) and self.to_bytes(ids) == raw:
                return tuple(ids)
        return None

    def _longest_match(self, raw: bytes) -> tuple[int, ...]:
        """The segmentation with the fewest tokens; of several, the one whose first tokens are longer."""
        best: list[tuple[int, int] | None] = [None] * (len(raw) + 1)
        best[len(raw)] = (0, 0)
        for start in range(len(raw) - 1, -1, -1):
            for length in range(min(self.max_piece, len(raw) - start), 0, -1):
                rest = best[start + length]
                if (
                    rest is not None
                    and raw[start : start + length] in self.ids_of
                    and (best[start] is None or rest[0] + 1 < best[start][0])  # type: ignore[index]
                ):
                    best[start] = (rest[0] + 1, length)
        ids, at = [], 0
        while at < len(raw):
            step = best[at]
            if step is None:
                at += 1
                continue
            ids.append(self.ids_of[raw[at : at + step[1]]][0])
            at += step[1]
        return tuple(ids)

    def check_round_trip(self, name: str) -> None:
        """Checks that encoding and decoding does not change text.

        Characters that the tokenizer has no token for are not compared: the member skips them. Any other difference
        makes the tokenizer lossy.

        Args:
            name (`str`): the member's name, for the message.

        Raises:
            TokenizerError: decoded text differs from the encoded text.
        """
        lost = []
        for char in dict.fromkeys(PROBE):
            ids = self._backend.encode("a" + char, add_special_tokens=False).ids
            back = b"".join(self.pieces[i] or b"" for i in ids)
            has_unknown = any(self.pieces[i] is None for i in ids)
            same = back.removeprefix(b" ") == b"a" + char.encode()
            dropped = back.removeprefix(b" ") == b"a" and char != " "
            if not same and not has_unknown and not dropped:
                lost.append(char)
        expected = self.representable(PROBE.encode())
        kept = expected.decode("utf-8", "replace")
        ids = self._backend.encode(kept, add_special_tokens=False).ids
        back = self.to_bytes(ids)
        if lost or back not in (expected, b" " + expected):
            detail = f"it changes {lost[:6]!r}" if lost else f"it decodes {kept!r} to {back!r}"
            raise TokenizerError(
                f"the tokenizer of {name} loses text: {detail}. Decoding must return exactly the encoded text; use a "
                "cased tokenizer that keeps white space (byte-level BPE, SentencePiece, characters)"
            )
