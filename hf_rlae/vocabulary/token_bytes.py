"""Canonical bytes: the byte string of every token id of a tokenizer."""

from __future__ import annotations

import copy
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_rlae.errors import TokenizerError
from hf_rlae.sharing import SharedInCopies
from hf_rlae.vocabulary.spelling import Spelling

_CONTEXTS = ("a {} b", "a{}b", "{0}{0}", "a{} b", "a {}b", "a\n{}\nb", "! {} !")
"""Texts in which an added token must leave its neighbours unchanged."""

_SHORT = 16
"""Number of characters up to which a text that the tokenizer changes is segmented without the tokenizer."""

_LONG = 256
"""Number of bytes that are segmented as a whole if they are no text; in longer ones only what is no character."""

_ANCHORS = ("\n", "|", "a", "0", "▁", " ")


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


class ByteVocabulary(SharedInCopies):
    """The byte string of every token id of one tokenizer, and the tokenisation of bytes.

    Byte-level BPE tokens are decoded with the GPT-2 byte table. In SentencePiece vocabularies `▁` is a space and, with
    byte fallback, `<0xNN>` is one byte. WordPiece continuations lose their `##`. Added tokens stand for their content.
    Special tokens, the unknown token and ids without a token have no bytes.

    Text is text: the name of a special token in a text stands for its characters. Added tokens that would change the
    text around them (`lstrip`, `rstrip`, or a space that the tokenizer adds after them) are encoded apart from it.

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
        start_ids (`tuple[int, ...]`): the ids that the tokenizer puts in front of every text, such as a
            beginning-of-text token.
        strips_space (`bool`): whether the tokenizer's decoder removes one space at the start of a text.
        apart (`dict[str, int]`): the added tokens that are encoded apart from the text around them, with their ids.
        backend (`tokenizers.Tokenizer`): the tokenizer's backend with settings of its own: it reads text as text.

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
        self.size = max(size or 0, len(tokenizer))
        self.pieces, self.special_ids, fallback_ids = self._read_pieces(tokenizer)
        self.ids_of: dict[bytes, list[int]] = {}
        for i, piece in enumerate(self.pieces):
            if piece:
                self.ids_of.setdefault(piece, []).append(i)
        for ids in self.ids_of.values():
            if len(ids) > 1:
                ids.sort(key=lambda i: (i in fallback_ids, i))
        order = sorted(self.ids_of)
        self.sorted_ids = [i for piece in order for i in self.ids_of[piece]]
        self.sorted_pieces = [piece for piece in order for _ in self.ids_of[piece]]
        self.max_piece = max(map(len, self.ids_of), default=0)
        self._canonical: dict[bytes, tuple[int, ...]] = {}
        self._has_char: dict[str, bool] = {}
        self._heads: dict[str, list[int]] = {}
        self.strips_space = self._strips_space(backend)
        self.backend = _with_own_settings(backend)
        self.backend.encode_special_tokens = True
        self.start_ids = self._find_start_ids()
        self.apart = self._tokens_that_change_text()
        self.backend.add_special_tokens([AddedToken(token, special=True) for token in self.apart])
        self._apart = _any_of(self.apart)
        self._awkward = _any_of([*self.apart, *self._strings_that_change(tokenizer)])

    def _read_pieces(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[bytes | None], frozenset[int], set[int]]:
        """The bytes of every id, the ids without bytes, and the ids that are byte-fallback tokens."""
        backend: Any = tokenizer.backend_tokenizer
        added, special, spelling = backend.get_added_tokens_decoder(), self._special_ids(tokenizer), Spelling(backend)
        pieces: list[bytes | None] = [None] * self.size
        fallback_ids: set[int] = set()
        tokens: dict[int, str] = {}
        for token, i in backend.get_vocab(with_added_tokens=True).items():
            if i in special:
                continue
            if i in added:
                pieces[i] = added[i].content.encode("utf-8", "surrogatepass")
            elif spelling.is_fallback(token):
                pieces[i] = bytes([int(token[3:5], 16)])
                fallback_ids.add(i)
            else:
                tokens[i] = token
        for i, piece in zip(tokens, spelling.to_bytes(list(tokens.values())), strict=True):
            pieces[i] = piece
        empty = {i for i, piece in enumerate(pieces) if not piece}
        return pieces, frozenset(empty), fallback_ids

    def _special_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """The ids that are not text: special tokens and the unknown token."""
        backend: Any = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        unknown, unigram_unknown = getattr(backend.model, "unk_token", None), getattr(backend.model, "unk_id", None)
        if isinstance(unknown, str):
            special.add(backend.token_to_id(unknown))
        if isinstance(unigram_unknown, int):
            special.add(unigram_unknown)
        special.discard(None)
        return special

    def _find_start_ids(self) -> tuple[int, ...]:
        """The ids that the post-processor puts in front of a text."""
        chars = (piece.decode("utf-8", "ignore")[:1] for piece in self.sorted_pieces)
        for text in chain(("a", "0"), chars):
            if text and self.encode_text(text):
                encoded = self.backend.encode(text)
                count = encoded.special_tokens_mask.index(0) if 0 in encoded.special_tokens_mask else 0
                return tuple(encoded.ids[:count])
        return ()

    def _strips_space(self, backend: Tokenizer) -> bool:
        words = (ids[0] for piece, ids in self.ids_of.items() if piece[:1] == b" " and piece[1:].isalpha())
        first = next(words, None)
        if first is not None:
            return not backend.decode([first]).startswith(" ")
        if b" " not in self.ids_of or b"a" not in self.ids_of:
            return False
        return not backend.decode([self.ids_of[b" "][0], self.ids_of[b"a"][0]]).startswith(" ")

    def _tokens_that_change_text(self) -> dict[str, int]:
        """The added tokens that are not special, and swallow or add spaces around them."""
        found = {}
        for i, token in self.backend.get_added_tokens_decoder().items():
            if token.special or not self.pieces[i]:
                continue
            texts = [context.format(token.content) for context in _CONTEXTS]
            if any(i in (ids := self.encode_text(text)) and not self.spells(ids, text) for text in texts):
                found[token.content] = i
        return found

    def _strings_that_change(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Strings that the tokenizer itself does not read as their characters, such as `▁` for a space.

        Unigram models find the names of special tokens in texts, because these are pieces of the model.
        """
        added = self.backend.get_added_tokens_decoder().values()
        names = {token.content for token in added if token.special} - set(self.apart) | {*tokenizer.all_special_tokens}
        replaced = {old for old, _ in Spelling(self.backend).replacements}
        return [text for text in names | replaced if not self.spells(self.encode_text(f"a{text}b"), f"a{text}b")]

    def is_awkward(self, text: str) -> bool:
        """Whether the tokenizer itself may change `text`, or write control tokens for it; `text_ids` does not."""
        return self._awkward is not None and self._awkward.search(text) is not None

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

    def encode_text(self, text: str) -> list[int]:
        """The ids that the tokenizer itself writes for `text`; they may lose text."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def spells(self, ids: Sequence[int], text: str) -> bool:
        """Whether `ids` are the characters of `text` that the tokenizer can represent; a space may precede them."""
        raw = text.encode("utf-8", "surrogatepass")
        pieces = [self.pieces[i] for i in ids]
        if None in pieces:
            return False
        found = b"".join(pieces)  # type: ignore[arg-type]
        return found in (raw, b" " + raw) or found.removeprefix(b" ") == self.representable(raw).removeprefix(b" ")

    def text_ids(self, raw: bytes) -> tuple[int, ...]:
        """The ids that the tokenizer itself writes for a text, without `start_ids`.

        If these lose text, or the bytes are no text, the rest is segmented as in `inner_ids`.

        Args:
            raw (`bytes`): any bytes.

        Returns:
            `tuple[int, ...]`: ids whose bytes are `representable(raw)`; a space may precede them.
        """
        try:
            text, rest = raw.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            text, rest = raw[: error.start].decode("utf-8"), raw[error.start :]
        if self._apart is not None and (found := self._apart.search(text)):
            head = text[: found.start()].encode()
            return (*self.text_ids(head), *self.inner_ids(raw[len(head) :]))
        ids: Sequence[int] = self.encode_text(text) if text else ()
        pieces = [self.pieces[i] for i in ids]
        written = raw[: len(raw) - len(rest)]
        if None in pieces or b"".join(pieces) not in (written, b" " + written):  # type: ignore[arg-type]
            kept = self.representable(written).decode()
            ids = self.encode_text(kept)
            ids = ids if self.spells(ids, kept) else self.inner_ids(kept.encode())
        return (*ids, *self.inner_ids(rest)) if rest else tuple(ids)

    def canonical_ids(self, raw: bytes) -> tuple[int, ...]:
        """`inner_ids`, cached.

        Args:
            raw (`bytes`): any bytes.

        Returns:
            `tuple[int, ...]`: ids whose bytes are `representable(raw)`.
        """
        known = self._canonical.get(raw)
        if known is None:
            if len(self._canonical) > 65536:
                self._canonical.clear()
            known = self._canonical[raw] = self.inner_ids(raw)
        return known

    def inner_ids(self, raw: bytes) -> tuple[int, ...]:
        """The ids that the tokenizer itself writes for `raw` in the middle of a text.

        `raw` is tokenised after an anchor character, so that the tokenizer adds no space. Where the ids do not decode
        to `raw` (incomplete characters, normalised characters), the segmentation with the fewest tokens is used. Bytes
        that the tokenizer cannot represent are left out.
        """
        kept = self.representable(raw)
        return self._tokenise(kept) if kept else ()

    def _tokenise(self, raw: bytes) -> tuple[int, ...]:
        ids: list[int] = []
        while raw:
            try:
                text, broken = raw.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                if len(raw) <= _LONG:
                    return (*ids, *self._longest_match(raw))
                text, broken = raw[: error.start].decode("utf-8"), raw[error.start : error.end]
            ids += self._tokenise_text(text)
            ids += self._longest_match(broken)
            raw = raw[len(text.encode()) + len(broken) :]
        return tuple(ids)

    def _tokenise_text(self, text: str) -> tuple[int, ...]:
        if self._apart is None:
            return self._inside(text)
        ids: list[int] = []
        for part in filter(None, self._apart.split(text)):
            ids += [self.apart[part]] if part in self.apart else self._inside(part)
        return tuple(ids)

    def _inside(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        raw = text.encode()
        ids = self._behind_anchor(text, raw)
        if ids is not None:
            return ids
        if len(text) <= _SHORT:
            return self._longest_match(raw)
        middle = len(text) // 2
        cut = text.rfind(" ", 1, middle + 1)  # only the part that the tokenizer changes is segmented in another way
        cut = cut if cut > 0 else middle
        return self._inside(text[:cut]) + self._inside(text[cut:])

    def _behind_anchor(self, text: str, raw: bytes) -> tuple[int, ...] | None:
        for anchor in _ANCHORS:
            head = self._heads.get(anchor)
            if head is None:
                head = self._heads[anchor] = self.encode_text(anchor)
            whole = self.encode_text(anchor + text)
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


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the strings, the longest first, as a group."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def _with_own_settings(backend: Tokenizer) -> Tokenizer:
    """A backend with the parts of another one, without padding and truncation.

    transformers changes the settings of a backend in every call. The parts are shared, because a copy of a large
    vocabulary takes half a second.
    """
    own = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(backend, part) is not None:
            setattr(own, part, getattr(backend, part))
    added = backend.get_added_tokens_decoder()
    for is_special, tokens in groupby((added[i] for i in sorted(added)), key=lambda token: token.special):
        (own.add_special_tokens if is_special else own.add_tokens)(list(tokens))
    if own.get_added_tokens_decoder() != added:  # ids with gaps
        own = copy.deepcopy(backend)
        own.no_truncation()
        own.no_padding()
    return own
