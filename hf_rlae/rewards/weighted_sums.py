"""Weighted sums of rewards: as a tensor operation, and as a reward function."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_rlae.checks import Bounds, check_list
from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards.contract import REWARD_LIMIT, columns_of, is_async, name_of
from hf_rlae.rewards.registry import get_reward


def total_rewards(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each row over the reward functions that could judge it.

    Source: public code (TRL combines `reward_funcs` and `reward_weights` in the same way).

    Args:
        rewards (`torch.Tensor` of shape `(B, F)`): NaN where a function could not judge the completion.
        weights (`torch.Tensor` of shape `(F,)`): one weight per function, on any device.

    Returns:
        `torch.Tensor` of shape `(B,)`: NaN where no function could judge the completion.

    Raises:
        RewardError: a sum is larger than `REWARD_LIMIT`.

    Example:

    >>> total_rewards(torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]), torch.tensor([2.0, 1.0]))
    tensor([2., nan])
    """
    totals = (rewards * weights.to(rewards.device)).nansum(1)
    huge = (~(totals.abs() <= REWARD_LIMIT)).nonzero()[:, 0].tolist()  # `~`: the sum of two infinities is NaN
    if huge:
        raise RewardError(
            f"the weighted sum of rewards of sample {huge[0]} is {float(totals[huge[0]]):g}, of the rewards "
            f"{rewards[huge[0]].tolist()} with the weights {weights.tolist()}; sums must be between -{REWARD_LIMIT:g} "
            f"and {REWARD_LIMIT:g}, because training squares and sums them in float32; scale or clip the rewards"
        )
    return totals.masked_fill(rewards.isnan().all(1), torch.nan)


class WeightedSum:
    """See `weighted_sum`."""

    def __init__(self, parts: Sequence[Callable[..., Any]], weights: Sequence[float], name: str) -> None:
        self.parts = tuple(parts)
        self.weights = tuple(weights)
        self.__name__ = name
        needed = [column for part in parts for column in getattr(part, "required_columns", ())]
        self.required_columns = tuple(dict.fromkeys(needed))
        self.further_columns = tuple(sorted(set().union(*map(columns_of, parts))))

    def __call__(self, prompts: Any = None, completions: Any = None, completion_ids: Any = None, **columns: Any) -> Any:
        """The same call as for every reward."""
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        return self._sum([part(**columns) for part in self.parts], completions)

    def _sum(self, outputs: Sequence[Any], completions: Any) -> list[float | None]:
        judged = [_column(output, part, len(completions)) for output, part in zip(outputs, self.parts, strict=True)]
        totals = total_rewards(torch.stack(judged, dim=1), torch.tensor(self.weights, dtype=torch.float64))
        return [None if math.isnan(total) else total for total in totals.tolist()]

    def __repr__(self) -> str:
        terms = (f"{weight:g} * {name_of(part)}" for part, weight in zip(self.parts, self.weights, strict=True))
        return f"<{type(self).__name__} {self.__name__} = {' + '.join(terms)}>"


class AsyncWeightedSum(WeightedSum):
    """A weighted sum with async parts, which run at the same time."""

    async def __call__(
        self, prompts: Any = None, completions: Any = None, completion_ids: Any = None, **columns: Any
    ) -> Any:
        """The same call as for every async reward."""
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}

        async def output(part: Callable[..., Any]) -> Any:
            return await part(**columns) if is_async(part) else part(**columns)

        return self._sum(await asyncio.gather(*map(output, self.parts)), completions)


def weighted_sum(
    rewards: Sequence[Callable[..., Any] | str], weights: Sequence[float] | None = None, name: str = "weighted_sum"
) -> WeightedSum:
    """`sum_k weights_k * rewards_k` as one reward function.

    A part that could not judge a completion (`None` or NaN) is left out of its sum. Where no part could judge, the sum
    is `None`. TRL does the same with `reward_funcs` and `reward_weights`, so the two are interchangeable.

    Source: ours, after TRL.

    Args:
        rewards (`Sequence`): reward functions, or names that `get_reward` knows. Async functions make the sum async.
        weights (`Sequence[float]`, *optional*): one finite number per reward; all 1 by default.
        name (`str`, defaults to `"weighted_sum"`): its `__name__`.

    Returns:
        callable: a reward.

    Raises:
        ConfigError: no rewards, an entry that is not a reward, or weights that do not match the rewards.

    Example:

    >>> from hf_rlae.rewards import length_penalty
    >>> reward = weighted_sum(["gsm8k", length_penalty(8, 4, unit="characters")], [1.0, 0.5])
    >>> reward(prompts=["?"] * 3, completions=["5", "It is 5.", "5"], answer=["5", "5", None])
    [1.0, 0.5, 0.0]
    """
    if isinstance(rewards, str) or not isinstance(rewards, Sequence) or not rewards:
        raise ConfigError(f"rewards must be a list with at least one reward, got {rewards!r:.80}")
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    check_list("weights", weights, Bounds(), len(rewards))
    parts = [_part(reward) for reward in rewards]
    kind = AsyncWeightedSum if any(map(is_async, parts)) else WeightedSum
    return kind(parts, list(map(float, weights)), name)


def _part(reward: Any) -> Callable[..., Any]:
    part = get_reward(reward) if isinstance(reward, str) else reward
    if not callable(part) or isinstance(part, torch.nn.Module):
        raise ConfigError(
            f"{type(part).__name__} is not a reward function; give a callable or the name of a reward. "
            "reward_model(...) makes a reward of a model"
        )
    return part


def _column(output: Any, part: Any, size: int) -> torch.Tensor:
    """What a part returned as a tensor of shape `(size,)`, NaN for `None`."""
    try:
        column = torch.tensor([math.nan if value is None else value for value in output], dtype=torch.float64)
    except (TypeError, ValueError):
        column = torch.empty(0, 0)
    if column.shape != (size,):
        raise RewardError(
            f"weighted_sum: {name_of(part)} returned {output!r:.80} for {size} completions; expected a list with one "
            "number or None per completion"
        )
    return column
