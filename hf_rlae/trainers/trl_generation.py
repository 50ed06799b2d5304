"""Options of `generate` and of chat templates in the rollouts of TRL's trainers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList, Trainer

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.trainers.prompt_datasets import check_template_kwargs
from hf_rlae.trainers.stop_strings import NEVER, Endings, stop_criterion

_WITHOUT_STOP_STRINGS = {
    "mask_truncated_completions": "TRL takes completions that a stop string ended for truncated ones, and masks them",
    "use_transformers_continuous_batching": "it has no tokenizer with which it could look for stop strings",
}
"""Options of TRL with which stop strings cannot be used, and why."""


def check_generation(args: Any) -> None:
    """Raises for `generation_kwargs` and `chat_template_kwargs` that cannot be used.

    Args:
        args (`trl.GRPOConfig` or `trl.RLOOConfig`): the configuration.

    Raises:
        ConfigError: see [`TRLGeneration`].
    """
    check_template_kwargs(args.chat_template_kwargs)
    given = args.generation_kwargs
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    if given is not None and not isinstance(given, dict):
        raise ConfigError(f"generation_kwargs={given!r}: give a dict, or a JSON object as a string")
    for name in given or ():
        if name not in known:
            raise ConfigError(f"generation_kwargs: {name!r} is not an option of `generate`: {nearest(name, known)}")
    _check_stop_strings(args, (given or {}).get("stop_strings"))


def _check_stop_strings(args: Any, strings: Any) -> None:
    for name, reason in _WITHOUT_STOP_STRINGS.items():
        if strings and getattr(args, name):
            raise ConfigError(f"{name}=True with stop_strings={strings!r}: {reason}; leave one of the two out")


class TRLGeneration(Trainer):
    """A mixin for TRL trainers with rollouts: stop strings in `generation_kwargs`. Put it before the trainer's class.

    TRL passes no tokenizer to `generate`, which needs one for stop strings, and takes the padding after a stop string
    for tokens of the completion. Here the tokenizer is passed, completions end with their stop string, and metrics
    count such completions as terminated.

    Source: ours.

    Raises:
        ConfigError: `stop_strings` that cannot be used, or not with another option; `generation_kwargs` that are no
            options of `generate`, which transformers would ignore; `chat_template_kwargs` that the trainer passes.
    """

    _endings: Endings | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_generation(kwargs["args"])
        super().__init__(*args, **kwargs)
        trainer: Any = self
        config: Any = getattr(trainer, "generation_config", None)  # not with vLLM
        strings = config and (config.stop_strings or trainer.model.generation_config.stop_strings)
        _check_stop_strings(trainer.args, strings)
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
