"""Streaming of generated text: whole characters, with the spaces of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from hf_rlae.ensemble import EnsembleCache, EnsembleForCausalLM
from hf_rlae.reports import live_token, style_of

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ContinuationDecoder:
    """Decodes ids that follow a prompt into pieces of text that are final.

    Ids are decoded together with those of the previous piece, because many tokenizers drop the space at the beginning.
    A piece that ends inside a character is held back until the character is complete. (`transformers.TextStreamer`
    also holds back such pieces, but decodes the continuation and then every line on its own: a SentencePiece tokenizer
    loses the space after the prompt and one space of every indentation. It also waits for a space, so that a text
    without spaces appears only at its end.)

    Args:
        tokenizer: has `decode(ids, skip_special_tokens)`.
        prompt_ids (`Sequence[int]`): of the prompt, which is not returned.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._behind: list[int] = list(prompt_ids)
        self._pending: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        """Adds ids, and returns the text that is now final (often none)."""
        self._pending += ids
        text = self._pending_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._behind, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Returns the text that was held back, without an incomplete last character."""
        text = self._pending_text()
        self._pending = []
        return text.rstrip(_REPLACEMENT)

    def _pending_text(self) -> str:
        behind = self._decode(self._behind)
        both = self._decode(self._behind + self._pending)
        # in some decoders bytes of incomplete characters change the neighbouring characters
        return both[len(behind) :] if both.startswith(behind) else self._decode(self._pending)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class ContinuationStreamer(BaseStreamer):
    """A streamer for `generate` that writes the continuation of one prompt, not the prompt.

    Args:
        tokenizer: the ensemble's.
        write (callable): is called with every piece of text.
        opening (`str`, *optional*): written first, once `generate` has accepted the prompt.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], object], opening: str = "") -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._opening = opening
        self._decoder: ContinuationDecoder | None = None

    @property
    def has_started(self) -> bool:
        """Whether `generate` has accepted the prompt."""
        return self._decoder is not None

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt of shape `(1, L)` first, then tokens of shape `(1,)`."""
        if self._decoder is None:
            self._decoder = ContinuationDecoder(self._tokenizer, value.flatten().tolist())
            if self._opening:
                self._write(self._opening)
            return
        piece = self._decoder.push(value.flatten().tolist())
        if piece:
            self._write(piece)

    def end(self) -> None:
        """Writes the text that was held back."""
        piece = self._decoder.finish() if self._decoder is not None else ""
        if piece:
            self._write(piece)


class CarrierStreamer(ContinuationStreamer):
    """Writes the continuation of one prompt on a terminal, with every token in the colour of its carrier.

    Args:
        ensemble (`EnsembleForCausalLM`): the one that generates.
        cache (`EnsembleCache`): from `ensemble.new_cache(record=True)`, passed to `generate` as `past_key_values`.
        console (`rich.console.Console`): the terminal.
        opening (`str`, *optional*): written first, without colour.
    """

    def __init__(
        self, ensemble: EnsembleForCausalLM, cache: EnsembleCache, console: Console, opening: str = ""
    ) -> None:
        super().__init__(ensemble.tokenizer, self._paint, opening)
        self._ensemble = ensemble
        self._cache = cache
        self._console = console
        self._style = ""

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt of shape `(1, L)` first, then tokens of shape `(1,)`."""
        if self._decoder is not None:
            self._style = style_of(live_token(self._ensemble, self._cache, int(value)).carrier)
        super().put(value)

    def _paint(self, piece: str) -> None:
        self._console.print(Text(piece, style=self._style), end="", soft_wrap=True)
