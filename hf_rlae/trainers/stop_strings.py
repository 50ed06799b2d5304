"""Rows that end at a stop string: which ones, and after how many tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, StopStringCriteria, Trainer

from hf_rlae.errors import ConfigError

NEVER = torch.iinfo(torch.long).max
"""The length of a completion that has not ended."""

_WITHOUT_STOP_STRINGS = {
    "mask_truncated_completions": "TRL takes completions that a stop string ended for truncated ones, and masks them",
    "use_transformers_continuous_batching": "it has no tokenizer with which it could look for stop strings",
}
"""Options of TRL with which stop strings cannot be used, and why."""


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


class StopStringRollouts(Trainer):
    """A mixin for TRL trainers with rollouts: `stop_strings` in `generation_kwargs`. Put it before the trainer's class.

    TRL passes no tokenizer to `generate`, which needs one for stop strings, and takes the padding after a stop string
    for tokens of the completion. Here the tokenizer is passed, completions end with their stop string, and metrics
    count such completions as terminated.

    Source: ours.

    Raises:
        ConfigError: `stop_strings` that cannot be used, or not with another option.
    """

    _endings: Endings | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_options(kwargs["args"], (kwargs["args"].generation_kwargs or {}).get("stop_strings"))
        super().__init__(*args, **kwargs)
        trainer: Any = self
        config: Any = getattr(trainer, "generation_config", None)  # not with vLLM
        strings = config and (config.stop_strings or trainer.model.generation_config.stop_strings)
        _check_options(trainer.args, strings)
        self._stop = stop_criterion(strings or None, trainer._tokenizer)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._generate(*args, **kwargs)  # type: ignore[misc]
        if self._endings is not None:
            self._correct_metrics(self._endings.lengths)
            self._endings = None
        return found

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if self._stop is None:
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        ends: list[int] = self.eos_token_ids  # type: ignore[attr-defined]
        endings = self._endings = Endings(torch.tensor(ends, device=self.accelerator.device), self._stop)
        found = super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        ids, *others = found if isinstance(found, tuple) else (found,)
        # TRL cuts completions after an end id alone: behind a stop string, there is padding
        ids = [row[:length] for row, length in zip(ids, endings.lengths.tolist(), strict=True)]
        return (ids, *others) if others else ids

    def _prepare_input(self, data: Any) -> Any:
        """Adds the tokenizer and the criterion to the arguments of `generate`."""
        prepared: Any = super()._prepare_input(data)
        if self._endings is not None and isinstance(data, dict) and "input_ids" in data:
            criteria = StoppingCriteriaList([self._endings])
            prepared |= {"tokenizer": self._tokenizer, "stopping_criteria": criteria}  # type: ignore[attr-defined]
        return prepared

    def _correct_metrics(self, lengths: torch.Tensor) -> None:
        """TRL counts only completions that end with an end id as terminated."""
        trainer: Any = self
        metrics = trainer._metrics["train" if trainer.model.training else "eval"]
        lengths = self.accelerator.gather(lengths)
        ended = lengths[lengths != NEVER].float()
        metrics["completions/clipped_ratio"][-1] = 1.0 - len(ended) / len(lengths)
        ended = ended if len(ended) else ended.new_zeros(1)
        for name in ("mean", "min", "max"):
            metrics[f"completions/{name}_terminated_length"][-1] = getattr(ended, name)().item()


def _check_options(args: Any, strings: Any) -> None:
    for name, reason in _WITHOUT_STOP_STRINGS.items():
        if strings and getattr(args, name):
            raise ConfigError(f"{name}=True with stop_strings={strings!r}: {reason}; leave one of the two out")
