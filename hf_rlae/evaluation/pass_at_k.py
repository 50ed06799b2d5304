"""pass@k: the probability that at least one of k completions of a task passes its tests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from hf_rlae.checks import COUNT, Bounds, check_number
from hf_rlae.errors import InputError
from hf_rlae.evaluation.metrics import RewardMetric


def estimate_pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased estimate of pass@k for one task: `1 - C(n - c, k) / C(n, k)` for c right ones of n samples.

    Source: arXiv 2107.03374, equation 1.

    Args:
        num_samples (`int`): n, completions of the task that were judged, at least k.
        num_correct (`int`): c, how many of them passed.
        k (`int`): at least 1.

    Returns:
        `float`: from 0 to 1.

    Raises:
        ConfigError: a number is out of range.

    Example:

    >>> estimate_pass_at_k(num_samples=4, num_correct=1, k=2)
    0.5
    """
    check_number("k", k, COUNT)
    check_number("num_samples", num_samples, Bounds(k, is_whole=True, note="pass@k needs k samples of each task"))
    check_number("num_correct", num_correct, Bounds(0, most=num_samples, is_whole=True))
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_at_k(rewards: Iterable[Sequence[float | None]], k: int = 1) -> float:
    """The mean over tasks of `estimate_pass_at_k`.

    Args:
        rewards (iterable of `Sequence[float | None]`): the rewards of each task's completions: 1.0 for one that passes,
            0.0 for one that does not, and `None` or NaN for one that could not be judged, which does not count.
        k (`int`, defaults to 1): at least 1.

    Returns:
        `float`: from 0 to 1. Tasks with fewer than k judged completions are left out; NaN if there are no others.

    Raises:
        InputError: a reward is neither 0 nor 1.
        ConfigError: `k` is out of range.

    Example:

    >>> pass_at_k([[1.0, 0.0, 0.0, None, 0.0], [1.0, 1.0, 0.0, 0.0]], k=2)
    0.6666666666666667
    """
    check_number("k", k, COUNT)
    judged = [[reward for reward in task if reward is not None and not math.isnan(reward)] for task in rewards]
    odd = next((reward for task in judged for reward in task if reward not in (0, 1)), None)
    if odd is not None:
        raise InputError(f"a reward is {odd!r}; pass@k counts completions that pass: give rewards of 0.0, 1.0 or None")
    estimates = [estimate_pass_at_k(len(task), int(sum(task)), k) for task in judged if len(task) >= k]
    return math.fsum(estimates) / len(estimates) if estimates else math.nan


class PassAtK(RewardMetric):
    """pass@k as an `evaluate.Metric`, for a reward that runs programs. See `pass_at_k`.

    A prediction is a list with the completions of one task, and its reference a dict with the columns that the reward
    reads.

    Args:
        reward (`str` or callable, defaults to `"mbpp"`): see `RewardMetric`.
        k (`Sequence[int]`, defaults to `(1, 10, 100)`): those that are larger than the number of completions of a task
            are left out for it.
        kwargs: as for `RewardMetric`.

    Example:

    >>> metric = PassAtK("number", k=[1, 2])
    >>> metric.compute(predictions=[["5", "6"], ["7", "8"]], references=[{"answer": "5"}, {"answer": "5"}])
    {'pass@1': 0.25, 'pass@2': 0.5, 'num_judged': 4, 'num_unjudged': 0}
    """

    def __init__(
        self, reward: str | Callable[..., Any] = "mbpp", k: Sequence[int] = (1, 10, 100), **kwargs: Any
    ) -> None:
        for each in k:
            check_number("k", each, COUNT)
        self.k = tuple(k)
        super().__init__(reward, **kwargs)

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:  # type: ignore[override]
        tasks = [json.loads(prediction) for prediction in predictions]
        if not all(isinstance(task, list) and not (task and isinstance(task[0], dict)) for task in tasks):
            raise InputError("a prediction is one completion; for pass@k it is a list with all completions of the task")
        rows = [json.loads(reference) for task, reference in zip(tasks, references, strict=True) for _ in task]
        rewards = iter(self._rewards([completion for task in tasks for completion in task], rows))
        by_task = [list(islice(rewards, len(task))) for task in tasks]
        found = {f"pass@{k}": pass_at_k(by_task, k) for k in self.k}
        unjudged = sum(reward is None for task in by_task for reward in task)
        counts = {"num_judged": len(rows) - unjudged, "num_unjudged": unjudged}
        return {name: value for name, value in found.items() if not math.isnan(value)} | counts
