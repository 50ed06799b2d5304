"""Text while it is generated: whole characters, with the spaces that the tokens stand for."""

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
    """Turns ids that follow a prompt into pieces of text, none of which has to be taken back.

    Ids are decoded behind those of the piece before, because many tokenizers drop the space at the beginning
    of what they decode. A piece that ends inside a character is held back until the character is whole.
    (`transformers.TextStreamer` holds back such pieces too, but decodes the continuation and then every line
    on its own: a SentencePiece tokenizer loses the space after the prompt and one space of every indentation.
    It also waits for a space, so that a text without spaces appears only at its end.)

    Args:
        tokenizer: has `decode(ids, skip_special_tokens)`.
        prompt_ids (`Sequence[int]`): what the text begins with; it is not given out.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._behind: list[int] = list(prompt_ids)
        self._pending: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        """Takes the next ids and returns the text that has become certain (often none)."""
        self._pending += ids
        text = self._pending_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._behind, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Returns what was held back; a character that the text breaks off in is left out."""
        text = self._pending_text()
        self._pending = []
        return text.rstrip(_REPLACEMENT)

    def _pending_text(self) -> str:
        behind = self._decode(self._behind)
        both = self._decode(self._behind + self._pending)
        # bytes that are no characters spoil the neighbouring ones in some decoders
        return both[len(behind) :] if both.startswith(behind) else self._decode(self._pending)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class ContinuationStreamer(BaseStreamer):
    """A streamer for `generate` that writes the continuation of one prompt, not the prompt.

    Args:
        tokenizer: the ensemble's.
        write (callable): called with every piece of text.
        opening (`str`, *optional*): written first, once `generate` has accepted the prompt.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], object], opening: str = "") -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._opening = opening
        self._decoder: ContinuationDecoder | None = None

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt of shape `(1, L)` first, then tokens of shape `(1,)`."""
        if self._decoder is None:
            self._decoder = ContinuationDecoder(self._tokenizer, value.flatten().tolist())
            if self._opening:
                self._write(self._opening)
            return
        piece = self._decoder.push(value.flatten().tolist())
        if piece:
            self._write(piece)

    def end(self) -> None:
        """Writes what was held back."""
        piece = self._decoder.finish() if self._decoder is not None else ""
        if piece:
            self._write(piece)


class CarrierStreamer(ContinuationStreamer):
    """Writes the continuation of one prompt on a terminal, every token in the colour of the member that carried it.

    Args:
        ensemble (`EnsembleForCausalLM`): that writes.
        cache (`EnsembleCache`): from `ensemble.new_cache(record=True)`, passed to `generate` as `past_key_values`.
        console (`rich.console.Console`): where it is written.
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
        """Takes the prompt of shape `(1, L)` first, then tokens of shape `(1,)`."""
        if self._decoder is not None:
            self._style = style_of(live_token(self._ensemble, self._cache, int(value)).carrier)
        super().put(value)

    def _paint(self, piece: str) -> None:
        self._console.print(Text(piece, style=self._style), end="", soft_wrap=True)


class TokenCounter(BaseStreamer):
    """A streamer for `generate` that reports each step, for progress bars; batches are fine.

    Args:
        advance (callable): called after every step.
    """

    def __init__(self, advance: Callable[[], object]) -> None:
        self._advance = advance
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompts first, then one token per row."""
        if not self._is_prompt:
            self._advance()
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is held back."""
