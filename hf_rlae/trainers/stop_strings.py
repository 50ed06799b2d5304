"""Rows that end at a stop string: which ones, and after how many tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StopStringCriteria

from hf_rlae.errors import ConfigError

NEVER = torch.iinfo(torch.long).max
"""The length of a completion that has not ended."""


def stop_criterion(strings: Any, tokenizer: PreTrainedTokenizerBase) -> StopStringCriteria | None:
    """transformers' criterion for `stop_strings`; `None` if there are none.

    Args:
        strings (`str` or `list[str]`, *optional*): as in `transformers.GenerationConfig`.
        tokenizer (`PreTrainedTokenizerBase`): has the strings of all ids.

    Raises:
        ConfigError: not strings, an empty one, or none that the tokenizer could write.
    """
    if strings is None:
        return None
    given = [strings] if isinstance(strings, str) else strings
    if not isinstance(given, list | tuple) or not given or not all(isinstance(entry, str) and entry for entry in given):
        raise ConfigError(f"stop_strings={strings!r}: give a string or a list of strings, none of them empty")
    try:
        return StopStringCriteria(tokenizer, list(given))
    except ValueError as error:
        raise ConfigError(f"stop_strings={strings!r}: no token of the tokenizer can end one of them") from error


class Endings(StoppingCriteria):
    """Ends rows at stop strings, and records after how many tokens each row ended. Use a new one for every `generate`.

    The stop string, and the rest of the token that completes it, belong to the completion, as in transformers.

    Args:
        end_ids (`torch.LongTensor` of shape `(E,)`): ids that end a row.
        stop (`StopStringCriteria`, *optional*): see [`stop_criterion`].

    Attributes:
        lengths (`torch.LongTensor` of shape `(B,)`): number of new tokens of each row, with the one that ended it;
            `NEVER` for rows that have not ended. Available after the first token.
    """

    lengths: torch.Tensor

    def __init__(self, end_ids: torch.Tensor, stop: StopStringCriteria | None = None) -> None:
        self.end_ids = end_ids
        self.stop = stop
        self._columns: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows have ended, `(B,)`."""
        if self._columns is None:
            self._columns = input_ids.shape[1] - 1
            self.lengths = input_ids.new_full((len(input_ids),), NEVER)
        ends = torch.isin(input_ids[:, -1], self.end_ids)
        if self.stop is not None:
            ends = ends | self.stop(input_ids, scores)
        length = input_ids.shape[1] - self._columns
        self.lengths = self.lengths.where(~ends | (self.lengths < length), length)
        return self.lengths <= length  # type: ignore[return-value]
