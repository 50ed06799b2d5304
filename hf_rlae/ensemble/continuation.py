"""The text of a completion while it is generated, and its end on request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

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


class StopRequest(StoppingCriteria):
    """A criterion for `generate` that ends all rows when it is asked to, one token later at most.

    Attributes:
        is_made (`bool`): set it to `True` from a signal handler, a streamer or another thread.
    """

    def __init__(self) -> None:
        self.is_made = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """The rows that end, a `torch.BoolTensor` of shape `(B,)`."""
        return torch.full((input_ids.shape[0],), self.is_made, dtype=torch.bool, device=input_ids.device)
