"""Datasets of prompts: what trainers check about them before they load or run anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from hf_rlae.errors import ConfigError

_PASSED = {
    "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
"""Arguments of `apply_chat_template` that trainers pass, or that would change what it returns."""


def named_datasets(train_dataset: Any = None, eval_dataset: Any = None) -> dict[str, Any]:
    """The datasets that are not `None`, by their names in error messages.

    Args:
        train_dataset (`datasets.Dataset`, *optional*): the training dataset.
        eval_dataset (`datasets.Dataset` or a mapping of names to these, *optional*): for evaluations.
    """
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    found = {"train_dataset": train_dataset, **evaluated}
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def prompts_by_dataset(train_dataset: Any = None, eval_dataset: Any = None) -> dict[str, list[Any]]:
    """The prompts of each dataset, by its name; see `named_datasets`.

    Args:
        train_dataset (`datasets.Dataset`, *optional*): with a column `prompt`.
        eval_dataset (`datasets.Dataset` or a mapping of names to these, *optional*): the same.

    Raises:
        ConfigError: not a `datasets.Dataset` (a streamed one, for example), an empty one, no column `prompt`, one
            with images, or prompts that are neither all strings nor all lists of messages.
    """
    return {name: _prompts(name, dataset) for name, dataset in named_datasets(train_dataset, eval_dataset).items()}


def _prompts(name: str, dataset: Any) -> list[Any]:
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"{name} is an IterableDataset, whose rows cannot be read by number: it could not be checked before "
            "training, and a resumed run would not read the same prompts; give a datasets.Dataset (load it without "
            "streaming=True, or take rows of the stream: `Dataset.from_list(list(stream.take(1000)))`)"
        )
    if not isinstance(dataset, Dataset):
        hint = "one of its datasets" if isinstance(dataset, Mapping) else "`Dataset.from_list(rows)` makes one of rows"
        raise ConfigError(f"{name} is a {type(dataset).__name__}; give a datasets.Dataset ({hint})")
    if "prompt" not in dataset.column_names:
        raise ConfigError(
            f"{name} has no column 'prompt' (it has {', '.join(dataset.column_names)}); rename the column of "
            "prompts, or load the data with `hf_rlae.tasks.load_task`"
        )
    if not len(dataset):
        raise ConfigError(f"{name} is empty; give at least one example")
    images = sorted({"image", "images"}.intersection(dataset.column_names))
    if images:
        raise ConfigError(f"{name} has a column {images[0]!r}, but the trainers support text only; remove it")
    prompts = list(dataset["prompt"])
    kinds = {type(prompt) for prompt in prompts}
    if kinds not in ({str}, {list}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(f"{name}: prompts must all be strings, or all be lists of messages, found {found}")
    return prompts


def check_prompts(args: Any, train_dataset: Any, eval_dataset: Any) -> dict[str, list[Any]]:
    """As `prompts_by_dataset`, and the training dataset must be there and have enough prompts for a rollout.

    Args:
        args: with `generation_batch_size` and `num_generations`.
        train_dataset, eval_dataset: see `prompts_by_dataset`.

    Raises:
        ConfigError: as `prompts_by_dataset`, and for a missing or too small `train_dataset`.
    """
    if train_dataset is None:
        raise ConfigError("train_dataset is missing; give a datasets.Dataset with a column `prompt`")
    found = prompts_by_dataset(train_dataset, eval_dataset)
    given, wanted = len(train_dataset), args.generation_batch_size // args.num_generations
    if given < wanted:
        raise ConfigError(
            f"train_dataset has {given} prompts, but a rollout of {args.generation_batch_size} completions needs "
            f"{wanted} different ones; give more prompts, a larger num_generations ({args.num_generations} now), or a "
            "smaller generation_batch_size"
        )
    return found


def check_template_kwargs(kwargs: Any) -> None:
    """Raises for `chat_template_kwargs` that are not arguments of a template.

    Args:
        kwargs (`dict`, *optional*): further arguments of `apply_chat_template`.

    Raises:
        ConfigError: not a `dict`, or an argument that the trainer itself passes.

    Example:

    >>> check_template_kwargs({"enable_thinking": False})
    """
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ConfigError(f"chat_template_kwargs={kwargs!r}: give a dict, or a JSON object as a string")
    taken = _PASSED.intersection(kwargs or ())
    if taken:
        raise ConfigError(
            f"chat_template_kwargs: the trainer itself passes {', '.join(sorted(taken))}; give only what templates "
            "read, such as enable_thinking (another template is set as the tokenizer's `chat_template`)"
        )


def check_chat_template(name: str, prompts: list[Any], tokenizer: Any, owner: str) -> None:
    """Raises if prompts are messages and a tokenizer cannot render them.

    Args:
        name (`str`): of the dataset.
        prompts (`list`): at least one string or list of messages.
        tokenizer (`PreTrainedTokenizerBase`): that encodes them.
        owner (`str`): the tokenizer's name in the message.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if isinstance(prompts[0], list) and not tokenizer.chat_template:
        raise ConfigError(
            f"{name}: prompts are messages, but {owner} has no chat template; set its `chat_template`, or give plain "
            "strings"
        )
