"""Policies with constant weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.errors import ConfigError
from hf_rlae.policies.state import PolicyState
from hf_rlae.registry import Registry
from hf_rlae.transfers import upload

policies: Registry[type] = Registry("policy")
"""Policies that an ensemble saves by name and settings in its `config.json`."""


@policies.register("static")
class StaticPolicy:
    """The same weights for every span of every row.

    Args:
        weights (`Sequence[float]`): one per member, at least 0, not all 0; they are divided by their sum.

    Raises:
        ConfigError: weights that are no real numbers, negative, not finite, or all 0.

    Example:

    >>> StaticPolicy([7, 3]).weights
    [0.7, 0.3]
    """

    registered_name = "static"
    observes_members = False

    def __init__(self, weights: Sequence[float]) -> None:
        try:
            values = [] if isinstance(weights, str | bytes) else [_real(weight) for weight in weights]
        except (TypeError, ValueError, OverflowError):
            values = []
        if not values or not all(math.isfinite(v) and v >= 0 for v in values) or not 0 < sum(values) < math.inf:
            raise ConfigError(
                f"weights={weights!r:.200}: give a list with one number per member, each finite and at least 0, and at "
                "least one above 0"
            )
        total = sum(values)
        self.weights = [value / total for value in values] if total != 1.0 else values
        self.num_members = len(values)

    def __call__(self, state: PolicyState) -> torch.Tensor:
        row = upload(torch.tensor(self.weights, dtype=torch.float32), state.device)
        return row.expand(state.batch_size, -1)

    def settings(self) -> dict[str, Any]:
        """What `StaticPolicy(**settings)` needs, for saving."""
        return {"weights": self.weights}


def _real(weight: Any) -> float:
    if isinstance(weight, str | bytes):
        raise TypeError("text is no weight")
    return float(weight)


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
