"""A streamer for ids of the first member's tokenizer, fed by an ensemble with different tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


class HostStreamer(BaseStreamer):
    """Passes the tokens of an ensemble on in ids of its first member's tokenizer, as soon as they end a character.

    Args:
        streamer (`BaseStreamer`): of the user.
        ensemble (`EnsembleForCausalLM`): members with different tokenizers.
    """

    def __init__(self, streamer: Any, ensemble: EnsembleForCausalLM) -> None:
        self.streamer, self.ensemble = streamer, ensemble
        self._is_prompt = True
        self._pending: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """See `BaseStreamer`; the first call is the prompt, whose ids are the first member's."""
        if self._is_prompt:
            self._is_prompt = False
            self.streamer.put(value)
            return
        self._pending += value.flatten().tolist()
        raw = b"".join(self.ensemble.pieces[i] or b"" for i in self._pending)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.end == len(raw) and len(raw) - error.start < 4:  # a character that goes on with the next token
                return
        self._pass_on()

    def end(self) -> None:
        """See `BaseStreamer`."""
        self._pass_on()
        self.streamer.end()

    def _pass_on(self) -> None:
        if self._pending:
            pad = self.ensemble.generation_config.pad_token_id
            row = torch.tensor([self._pending])
            self._pending = []
            self.streamer.put(self.ensemble.engine.to_first_member(row, 0, pad)[0])
