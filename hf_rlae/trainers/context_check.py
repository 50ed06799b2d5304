"""Prompts that fill the context of the trained model are refused before training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import Trainer

from hf_rlae.errors import InputError
from hf_rlae.members.member import context_length_of
from hf_rlae.trainers.prompt_datasets import check_chat_template, named_datasets

logger = logging.getLogger(__name__)

_CHUNK = 1000


def check_longest(name: str, lengths: Sequence[int], context: int | None, owner: str, hint: str) -> float:
    """Raises if a prompt fills a context.

    Args:
        name (`str`): of the dataset.
        lengths (`Sequence[int]`): the number of tokens of every prompt.
        context (`int`, *optional*): the maximum number of tokens of the model; `None` for no limit.
        owner (`str`): the model's name in the message.
        hint (`str`): how to fix it.

    Returns:
        `float`: the room that the longest prompt leaves, in tokens; infinite without a limit.

    Raises:
        InputError: names the dataset, the row, its length and the context.

    Example:

    >>> check_longest("train_dataset", [3, 5], 8, "the model", "remove long prompts")
    3
    """
    if context is None:
        return float("inf")
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] >= context:
        raise InputError(
            f"{name}: the prompt of row {longest} has {lengths[longest]} tokens for {owner}, whose context has "
            f"{context}; {hint}"
        )
    return context - lengths[longest]


class ContextCheck(Trainer):
    """A mixin for TRL trainers with rollouts: checks the length of every prompt. Put it before the trainer's class.

    Source: ours.

    Raises:
        InputError: a prompt that fills the model's context; also from `evaluate`.
    """

    args: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_contexts(named_datasets(self.train_dataset, self.eval_dataset))

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            self._check_contexts(named_datasets(eval_dataset=eval_dataset))
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _check_contexts(self, datasets: dict[str, Any]) -> None:
        model: Any = self.model
        context = context_length_of(model.config.get_text_config())
        for name, dataset in datasets.items():
            if context is None or not isinstance(dataset, Dataset) or not len(dataset):
                continue
            check_chat_template(name, dataset[:1]["prompt"], self.processing_class, "the model's tokenizer")
            room = check_longest(name, self._prompt_lengths(dataset), context, "the model", "remove long prompts")
            if room < (self.args.max_completion_length or 0):
                logger.warning(
                    "max_completion_length=%d, but after the longest prompt of %s the model's context of %d tokens has "
                    "room for %d; give a smaller max_completion_length, or shorter prompts",
                    self.args.max_completion_length, name, context, room,
                )  # fmt: skip

    def _prompt_lengths(self, dataset: Dataset) -> list[int]:
        prompts = dataset["prompt"]
        chunks = (prompts[start : start + _CHUNK] for start in range(0, len(prompts), _CHUNK))
        return [len(ids) for chunk in chunks for ids in self._tokenize_prompts(chunk)[0]]  # type: ignore[attr-defined]
