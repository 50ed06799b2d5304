"""Policies with constant weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.errors import ConfigError
from hf_rlae.policies.state import PolicyState
from hf_rlae.registry import Registry

policies: Registry[type] = Registry("policy")
"""Policies that an ensemble saves by name and settings in its `config.json`."""


@policies.register("static")
class StaticPolicy:
    """The same weights for every span of every row.

    Args:
        weights (`Sequence[float]`): one per member, at least 0, not all 0; they are divided by their sum.

    Raises:
        ConfigError: weights that are negative, not finite, or all 0.

    Example:

    >>> StaticPolicy([7, 3]).weights
    [0.7, 0.3]
    """

    registered_name = "static"
    observes_members = False

    def __init__(self, weights: Sequence[float]) -> None:
        values = [float(weight) for weight in weights]
        if not values or not all(math.isfinite(v) and v >= 0 for v in values) or sum(values) <= 0:
            raise ConfigError(
                f"weights={list(weights)}: give one number per member, each finite and at least 0, and at least one "
                "above 0"
            )
        total = sum(values)
        self.weights = [value / total for value in values] if total != 1.0 else values
        self.num_members = len(values)

    def __call__(self, state: PolicyState) -> torch.Tensor:
        row = torch.tensor(self.weights, dtype=torch.float32, device=state.device)
        return row.expand(state.batch_size, -1)

    def settings(self) -> dict[str, Any]:
        """What `StaticPolicy(**settings)` needs, for saving."""
        return {"weights": self.weights}


@policies.register("uniform")
class UniformPolicy:
    """Equal weights for any number of members."""

    registered_name = "uniform"
    observes_members = False

    def __call__(self, state: PolicyState) -> torch.Tensor:
        return torch.full((state.batch_size, state.num_members), 1 / state.num_members, device=state.device)

    def settings(self) -> dict[str, Any]:
        """No settings: an empty `dict`."""
        return {}
