"""Reward functions of trainers: their type, and weighted sums of their rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

RewardFunc = str | PreTrainedModel | Callable[..., Any]
"""A registered name, dotted path, Hub id or folder; a reward model; or a function in TRL's form."""


def weighted_sums(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each completion's rewards, as in TRL.

    Args:
        rewards (`torch.Tensor` of shape `(B, F)`): NaN where a function could not judge; it is left out of the sum.
        weights (`torch.Tensor` of shape `(F,)`): one per function.

    Returns:
        `torch.Tensor` of shape `(B,)`: NaN where no function could judge.

    Example:

    >>> weighted_sums(torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]), torch.tensor([2.0, 1.0]))
    tensor([2., nan])
    """
    sums = (rewards * weights.to(rewards.device)).nansum(1)
    return sums.masked_fill(rewards.isnan().all(1), torch.nan)
