"""The datasets and the rewards of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards import get_reward, list_rewards, reward_model
from hf_rlae.rewards.calls.resolve import resolve_rewards
from hf_rlae.tasks import get_task, load_task
from hf_rlae.trainers.runs.arguments import TaskArguments


def check_rewards(args: TaskArguments) -> list[Any]:
    """The rewards of a run, checked by name; models are not loaded.

    Returns:
        `list`: names, and mappings with `name` and options.

    Raises:
        ConfigError: an unknown task or reward, or a task without a reward of its own.
    """
    task = get_task(str(args.task))
    if not args.rewards and task.reward is None:
        raise ConfigError(f"the task {task.name!r} has no reward of its own ({task.reward_note}); give rewards")
    own: Any = args.rewards or [task.reward]
    given: list[Any] = list(own)
    for entry in given:
        if isinstance(entry, Mapping) and not isinstance(entry.get("name"), str):
            raise ConfigError(f"rewards: {dict(entry)!r} has no name; give the reward's name beside its options")
    resolve_rewards([entry["name"] if isinstance(entry, Mapping) else entry for entry in given])
    known = list_rewards()
    return [_made(entry) if isinstance(entry, Mapping) and entry["name"] in known else entry for entry in given]


def load_rewards(given: list[Any]) -> list[Any]:
    """The rewards for a trainer: those with options are made, others stay names.

    Args:
        given (`list`): from `check_rewards`.
    """
    return [_made(entry) if isinstance(entry, Mapping) else entry for entry in given]


def _made(entry: Mapping[str, Any]) -> Any:
    options = {key: value for key, value in entry.items() if key != "name"}
    name = entry["name"]
    try:
        return get_reward(name, **options) if name in list_rewards() else reward_model(name, **options)
    except (TypeError, RewardError) as error:
        raise ConfigError(f"rewards: {name} cannot be made with {options}: {error}") from error


def load_datasets(args: TaskArguments) -> tuple[Any, Any]:
    """The training set and the validation set, or `None` for the latter.

    Raises:
        ConfigError, TaskError: see `load_task`.
    """
    if args.eval_split == args.train_split:
        held_out = int(args.eval_size or 0)
        limit = None if args.train_size is None else args.train_size + held_out
        rows = _load(args, args.train_split, limit)
        if len(rows) <= held_out:
            raise ConfigError(
                f"eval_size={held_out}, but the split {args.train_split!r} has {len(rows)} rows; hold out fewer"
            )
        parts = rows.train_test_split(test_size=held_out, seed=args.task_seed)
        return parts["train"], parts["test"]
    evaluation = None if args.eval_split is None else _load(args, args.eval_split, args.eval_size)
    return _load(args, args.train_split, args.train_size), evaluation


def load_test_rows(args: TaskArguments, split: str, limit: int | None) -> Any:
    """Rows of another split of the task, asked as in training.

    Raises:
        ConfigError, TaskError: see `load_task`.
    """
    return _load(args, split, limit)


def _load(args: TaskArguments, split: str, limit: int | None) -> Any:
    return load_task(
        str(args.task),
        split,
        args.task_source,
        limit,
        args.task_seed,
        config=args.task_config,
        revision=args.task_revision,
        prompt_format=args.prompt_format,
        template=args.prompt_template,
        num_few_shot=args.num_few_shot,
        few_shot_split=args.few_shot_split,
        **(args.task_options or {}),  # type: ignore[arg-type]  # no string after __post_init__
    )
