"""Progress of `generate`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers.generation.streamers import BaseStreamer


class TokenCounter(BaseStreamer):
    """A streamer for `generate` that reports each step, for progress bars; batches and several calls are supported.

    Args:
        advance (callable): called after every step.
    """

    def __init__(self, advance: Callable[[], object]) -> None:
        self._advance = advance
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompts first, then one token per row."""
        if not self._is_prompt:
            self._advance()
        self._is_prompt = False

    def end(self) -> None:
        """The next call begins with its prompts."""
        self._is_prompt = True
