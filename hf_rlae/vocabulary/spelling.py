"""How a tokenizer writes bytes as token strings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any


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


def component_parts(component: Any) -> list[dict[str, Any]]:
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


class Spelling:
    """How a tokenizer writes bytes as token strings, read from its model, decoder and pre-tokenizer."""

    def __init__(self, backend: Any) -> None:
        model = backend.model
        decoders = component_parts(backend.decoder)
        kinds = {part.get("type") for part in decoders}
        splitters = component_parts(backend.pre_tokenizer)
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

    def to_bytes(self, tokens: Sequence[str]) -> list[bytes]:
        """The bytes that each token string stands for."""
        if self.prefix or self.suffix or self.replacements:
            tokens = [self._replaced(token) for token in tokens]
        if not self.is_byte_level:
            return [token.encode("utf-8", "surrogatepass") for token in tokens]
        try:  # one character of a token is one byte, so all tokens can be translated as one string
            joined = "".join(tokens).translate(self.table).encode("latin-1")
        except UnicodeEncodeError:
            return [self._translated(token) for token in tokens]
        ends = list(accumulate(map(len, tokens)))
        return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _replaced(self, token: str) -> str:
        if self.prefix and token.startswith(self.prefix):
            token = token[len(self.prefix) :]
        if self.suffix and token.endswith(self.suffix):
            token = token[: -len(self.suffix)] + " "
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token

    def _translated(self, token: str) -> bytes:
        try:
            return token.translate(self.table).encode("latin-1")
        except UnicodeEncodeError:  # the decoder keeps a token with a character outside the byte table unchanged
            return token.encode("utf-8", "surrogatepass")
