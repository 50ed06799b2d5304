"""Texts that no member can continue, and that must not end."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.errors import InputError


class EndWatch(LogitsProcessor):
    """Raises where no member can continue a text, and the processors before it do not let the text end.

    If tokenizers differ, a text ends where all contexts are outgrown: STOP is the only token with probability. If
    `min_new_tokens` rules it out, no token is left, from which sampling would fail and greedy search would take any.

    Args:
        cache (`EnsembleCache`): the cache of the call.
    """

    def __init__(self, cache: EnsembleCache) -> None:
        self.cache = cache

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns the scores unchanged.

        Raises:
            InputError: all scores of a text that has to end are minus infinity.
        """
        ended = self.cache.ended
        if ended is None or self.cache.is_recording:  # in assisted decoding, the scores are of several columns
            return scores
        lost = ended & ~(scores > -torch.inf).any(1)
        if bool(lost.any()):
            token = input_ids.shape[1] - (self.cache.start or 0)
            raise InputError(
                f"row {int(lost.nonzero()[0])} must not end at completion token {token}, counted from 0 "
                "(min_new_tokens, or another processor, rules STOP out), but no member can continue it, because the "
                "contexts of all members are outgrown; ask for fewer tokens or shorten the prompt"
            )
        return scores
