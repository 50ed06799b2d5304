"""The unit of the critic: running mean and deviation of the rewards."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

LEAST_SHARE = 1e-5
"""A deviation below this share of the mean is rounding: such rewards count as constant. Source: ours."""


@dataclass
class ValueScale:
    """Running mean and deviation of all rewards of a run, in float64.

    The critic estimates `(return - mean) / deviation`, so that a critic that returns 0 estimates the mean reward, and
    its targets are of order 1 for rewards of any size.

    Source: value normalisation of MAPPO (arXiv 2103.01955, section 5.1).

    Attributes:
        count (`int`): number of rewards.
        mean (`float`): of the rewards.
        squares (`float`): sum of the squared deviations from the mean.

    Example:

    >>> scale = ValueScale()
    >>> scale.add(torch.tensor([1.0, 3.0, torch.nan]))
    >>> scale.normalised(torch.tensor([2.0, 3.0])), scale.in_rewards(torch.tensor([0.0, 1.0]))
    (tensor([0., 1.]), tensor([2., 3.]))
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, rewards: torch.Tensor) -> None:
        """Adds rewards of a rollout, of all processes; NaN is left out.

        Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".

        Args:
            rewards (`torch.Tensor` of shape `(B,)`).
        """
        judged = rewards[~rewards.isnan()].double().cpu()
        if not len(judged):
            return
        new_mean, total = float(judged.mean()), self.count + len(judged)
        gap = new_mean - self.mean
        self.squares += float((judged - new_mean).square().sum()) + gap * gap * self.count * len(judged) / total
        self.mean += gap * len(judged) / total
        self.count = total

    @property
    def deviation(self) -> float:
        """The standard deviation; 1 for constant rewards."""
        found = math.sqrt(self.squares / max(self.count, 1))
        return found if found > LEAST_SHARE * abs(self.mean) else 1.0

    def normalised(self, returns: torch.Tensor) -> torch.Tensor:
        """Returns in the critic's unit."""
        return (returns - self.mean) / self.deviation

    def in_rewards(self, values: torch.Tensor) -> torch.Tensor:
        """The critic's values in the unit of the rewards."""
        return values * self.deviation + self.mean

    def state(self) -> dict[str, float]:
        """Plain numbers to be saved; `ValueScale(**state)` restores them."""
        return asdict(self)
