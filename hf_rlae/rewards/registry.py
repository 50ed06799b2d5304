"""Rewards by name. Each module of this package whose name ends in `_rule` registers its rewards."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from hf_rlae.errors import RewardError
from hf_rlae.registry import Registry
from hf_rlae.rewards.contract import Reward

rewards: Registry[Callable[..., Any]] = Registry("reward")
"""Name -> reward; `@rewards.register("mine")` adds one."""


@cache
def _discover() -> None:
    package = importlib.import_module("hf_rlae.rewards")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_rule"):
            importlib.import_module(f"{package.__name__}.{module.name}")


def get_reward(name: str, **options: Any) -> Callable[..., Any]:
    """A reward by the name of its task or its rule.

    Args:
        name (`str`): a task (`"gsm8k"`, `"mmlu"`, ...), a rule (`"number"`, `"letter"`, ...), or the name of a reward
            that you registered; `list_rewards()` returns them all.
        options: options of the reward's class, such as `lexicon=` of `"sentiment"`; without options, the registered
            object itself is returned.

    Returns:
        callable: `reward(prompts, completions, completion_ids=None, **columns) -> list[float | None]`.

    Raises:
        ConfigError: there is no such reward.
        RewardError: the reward has no such option.
        RewardUnavailableError: something that the reward needs is not installed.

    Example:

    >>> reward = get_reward("gsm8k")
    >>> reward(prompts=["2 + 3?"] * 2, completions=["It is 5.", "It is 6."], answer=["2 + 3 = 5 #### 5"] * 2)
    [1.0, 0.0]
    """
    _discover()
    reward = rewards[name]
    if options:
        if not isinstance(reward, Reward):
            raise RewardError(f"{name} is a plain function and has no options; bind them with functools.partial")
        reward = reward.with_options(**options)
    if isinstance(reward, Reward):
        reward.check_available()
    return reward


def list_rewards() -> list[str]:
    """The names that `get_reward` knows, sorted.

    Example:

    >>> {"gsm8k", "letter", "mmlu", "number", "triviaqa"} <= set(list_rewards())
    True
    """
    _discover()
    return list(rewards)


def register_tasks(make: Callable[[str], Reward], tasks: tuple[str, ...]) -> None:
    """Registers one reward per task, each with its own name, such as `gsm8k_reward` for `gsm8k`.

    Args:
        make (callable): makes a reward with the given name.
        tasks (`tuple[str, ...]`): the tasks that a rule judges, and the name of the rule.
    """
    for task in tasks:
        rewards.register(task)(make(f"{task}_reward"))
