"""Several rewards as one: sums of rewards that were brought to one scale first."""

from __future__ import annotations

import torch

from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.advantages import group_relative

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
"""The values of `multi_objective_aggregation`; TRL's words."""


@torch.no_grad()
def normalized_sum(
    rewards: torch.Tensor, weights: torch.Tensor, num_generations: int | None = None, eps: float = 1e-4
) -> torch.Tensor:
    """`sum_k weights_k (r_k - mean_k) / (std_k + eps)`: each reward has the same scale, whatever its own.

    In a plain sum the reward with the largest deviation decides, and different combinations of rewards may be equal.

    Source: GDPO (arXiv 2601.05242); TRL (`multi_objective_aggregation="normalize_then_sum"`).

    Args:
        rewards (`torch.Tensor` of shape `(B, F)`): by function, NaN where it could not judge the completion; such
            entries are left out of mean, deviation and sum.
        weights (`torch.Tensor` of shape `(F,)`): one per function.
        num_generations (`int`, *optional*): G; mean and deviation are those of the G completions of a prompt, which are
            adjacent. `None` takes those of all completions.
        eps (`float`, defaults to 1e-4): added to the standard deviation.

    Returns:
        `torch.Tensor` of shape `(B,)`: NaN where no function could judge.

    Raises:
        ObjectiveError: shapes that do not fit, infinite rewards, or a number of completions that G does not divide.
        ConfigError: G below 1, or `eps` that is not above 0.

    Example:

    >>> rewards = torch.tensor([[1.0, 200.0], [0.0, 300.0]])
    >>> normalized_sum(rewards, torch.tensor([2.0, 1.0])).round(decimals=2)
    tensor([ 0.7100, -0.7100])
    """
    if weights.shape != rewards.shape[1:]:
        raise ObjectiveError(
            f"weights has shape {tuple(weights.shape)}, rewards has shape {tuple(rewards.shape)}; give one weight per "
            "column"
        )
    size = num_generations or len(rewards)
    normalized = torch.stack([group_relative(column, size, "group", eps) for column in rewards.T], dim=1)
    return (normalized @ weights.to(normalized)).masked_fill(rewards.isnan().all(1), torch.nan)
