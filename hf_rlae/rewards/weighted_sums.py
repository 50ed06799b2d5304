"""Several rewards as one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards.contract import is_async, name_of
from hf_rlae.rewards.registry import get_reward

Part = tuple[Callable[..., Any], float]


class WeightedSum:
    """See `weighted_sum`."""

    def __init__(self, parts: Sequence[Part], name: str) -> None:
        self.parts = tuple(parts)
        self.__name__ = name

    def __call__(self, prompts: Any = None, completions: Any = None, completion_ids: Any = None, **columns: Any) -> Any:
        """As every reward."""
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        return self._sum([reward(**given) for reward, _ in self.parts], completions)

    def _sum(self, rewards: Sequence[Any], completions: Any) -> list[float | None]:
        columns = [
            _checked(values, name_of(part), len(completions))
            for values, (part, _) in zip(rewards, self.parts, strict=True)
        ]
        weights = [weight for _, weight in self.parts]
        totals: list[float | None] = []
        for row in zip(*columns, strict=True):
            judged = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
            totals.append(math.fsum(judged) if judged else None)
        return totals

    def __repr__(self) -> str:
        terms = " + ".join(f"{weight:g} * {name_of(part)}" for part, weight in self.parts)
        return f"<{type(self).__name__} {self.__name__} = {terms}>"


class AsyncWeightedSum(WeightedSum):
    """A weighted sum with parts that are async; they run at the same time."""

    async def __call__(
        self, prompts: Any = None, completions: Any = None, completion_ids: Any = None, **columns: Any
    ) -> Any:
        """As every async reward: to be awaited."""
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        waiting = {at: part(**given) for at, (part, _) in enumerate(self.parts) if is_async(part)}
        results = dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))
        rewards = [results[at] if at in results else part(**given) for at, (part, _) in enumerate(self.parts)]
        return self._sum(rewards, completions)


def weighted_sum(
    rewards: Sequence[Callable[..., Any] | str], weights: Sequence[float] | None = None, name: str = "weighted_sum"
) -> WeightedSum:
    """`sum_k weights_k * rewards_k` as one reward function.

    A part that could not judge a text (`None` or NaN) is left out of its sum; if no part could, the sum is `None`.
    This is what TRL does with `reward_funcs` and `reward_weights`, so that either may stand for the other.

    Source: ours, after TRL.

    Args:
        rewards (`Sequence`): reward functions or names that `get_reward` knows. Async functions make the sum async.
        weights (`Sequence[float]`, *optional*): one finite number a reward; all 1 if not given.
        name (`str`, defaults to `"weighted_sum"`): its `__name__`.

    Returns:
        callable: a reward.

    Raises:
        ConfigError: no rewards, something that is no reward, or weights that do not fit.

    Example:

    >>> from hf_rlae.rewards import length_penalty
    >>> reward = weighted_sum(["gsm8k", length_penalty(8, 4, unit="characters")], [1.0, 0.5])
    >>> reward(prompts=["?"] * 3, completions=["5", "It is 5.", "5"], answer=["5", "5", None])
    [1.0, 0.5, 0.0]
    """
    if isinstance(rewards, str) or not isinstance(rewards, Sequence) or not rewards:
        raise ConfigError(f"rewards must be a list with at least one reward, got {rewards!r:.80}")
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    if len(weights) != len(rewards):
        raise ConfigError(f"there are {len(rewards)} rewards and {len(weights)} weights; give one weight a reward")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise ConfigError(f"weights must be finite numbers, got {weight!r}")
    parts = [get_reward(reward) if isinstance(reward, str) else reward for reward in rewards]
    for part in parts:
        if not callable(part) or hasattr(part, "named_parameters"):
            raise ConfigError(
                f"{type(part).__name__} is no reward function; give a callable or a name, and a model as "
                f"reward_model(...)"
            )
    kind = AsyncWeightedSum if any(is_async(part) for part in parts) else WeightedSum
    return kind([(part, float(weight)) for part, weight in zip(parts, weights, strict=True)], name)


def _checked(values: Any, name: str, size: int) -> list[float | None]:
    if not hasattr(values, "__len__") or len(values) != size:
        raise RewardError(
            f"weighted_sum: {name} gave {values!r:.80} for {size} completions; expected a list of as many"
        )
    numbers = [None if value is None or value != value else value for value in values]
    for row, value in enumerate(numbers):
        if value is not None and not isinstance(value, Real):
            raise RewardError(
                f"weighted_sum: {name} gave {value!r:.80} for completion {row}; expected a number or None"
            )
    return [None if value is None else float(value) for value in numbers]
