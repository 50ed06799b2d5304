"""Streaming of generated text: whole characters, with the spaces of the tokens."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from hf_rlae.ensemble import EnsembleCache, EnsembleForCausalLM
from hf_rlae.ensemble.continuation import ContinuationDecoder
from hf_rlae.reports import live_token, style_of


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


@contextmanager
def warnings_after_the_text() -> Iterator[None]:
    """Holds back the package's warnings, which would otherwise appear in the middle of a streamed text."""
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter("hf-rlae: warning: %(message)s"))
    held = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL, target=shown)
    held.setLevel(logging.WARNING)
    logger = logging.getLogger("hf_rlae")
    logger.addHandler(held)
    try:
        yield
    finally:
        logger.removeHandler(held)
        held.close()
