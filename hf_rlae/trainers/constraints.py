"""Constraints on rewards by Lagrange multipliers: maximise the main reward where another one has at least some mean."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.checks import POSITIVE, Bounds, check_fields
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.trainers.defaults import option


@dataclass
class ConstraintArguments:
    """The arguments of constraints on rewards. Put it before the configuration's class.

    Args:
        reward_constraints (`dict[str, float]`, *optional*): by the name of a reward function, the least mean that its
            reward has to have. The other functions are maximised. The weight of a constrained function is a multiplier
            that grows while the mean of a rollout is too low, and falls to 0 while it is higher.
        multiplier_learning_rate (`float`, defaults to 0.1): after each rollout a multiplier changes by this, times the
            least mean less the rollout's mean.
        max_multiplier (`float`, defaults to 10.0): the largest multiplier; a constraint that cannot be met ends there.
    """

    reward_constraints: dict[str, float] | str | None = option(
        default=None, help="The least mean of reward functions, by name, as in {'length_penalty': -0.1}."
    )
    multiplier_learning_rate: float = option(default=0.1, help="Step size of the constraints' multipliers.")
    max_multiplier: float = option(default=10.0, help="The largest multiplier of a constraint.")

    def __post_init__(self) -> None:
        check_fields(self, {"multiplier_learning_rate": POSITIVE, "max_multiplier": POSITIVE})
        given: Any = self.reward_constraints
        if isinstance(given, str):  # from a command line
            with contextlib.suppress(json.JSONDecodeError):
                given = json.loads(given)
        is_mapping = isinstance(given, Mapping) and all(isinstance(name, str) for name in given)
        if given is not None and not (is_mapping and all(map(Bounds().holds, given.values()))):
            raise ConfigError(
                f"reward_constraints={given!r}: give the least mean of reward functions by name, as in "
                "{'length_penalty': -0.1}"
            )
        self.reward_constraints = dict(given) if given else None
        super().__post_init__()  # type: ignore[misc]


class RewardConstraints:
    """The multipliers of constraints, and the weights of reward functions that follow from them.

    With the main reward `r`, constrained rewards `c_k` and their least means `d_k`, agents learn from
    `(r + sum_k lambda_k c_k) / (1 + sum_k lambda_k)`, which has the scale of one reward whatever the multipliers. After
    each rollout `lambda_k = min(max(lambda_k + eta (d_k - mean of c_k), 0), max)`: gradient ascent on the dual function
    of `max_pi min_{lambda >= 0} E r + sum_k lambda_k (E c_k - d_k)`.

    Source: Lagrange multipliers as the weights of several rewards: arXiv 2310.04373; this form is ours.

    Args:
        args ([`ConstraintArguments`]): the constraints.
        names (`Sequence[str]`): of the F reward functions.
        weights (`Sequence[float]`, *optional*): of the functions, all 1 by default; those of constrained ones must be 0
            if weights are given.

    Attributes:
        multipliers (`dict[str, float]`): by name of the function; they start at 0.

    Raises:
        ConfigError: a name that no function or more than one has, a weight, or no function that is not constrained.
    """

    def __init__(self, args: ConstraintArguments, names: Sequence[str], weights: Sequence[float] | None) -> None:
        self.args, self.names = args, list(names)
        self.least: dict[str, float] = dict(args.reward_constraints or {})  # type: ignore[arg-type]
        given = [1.0] * len(names) if weights is None else list(map(float, weights))
        if len(given) != len(names):
            raise ConfigError(
                f"reward_weights has {len(given)} entries for {len(names)} reward functions ({', '.join(names)}); give "
                "one weight per function"
            )
        for name in self.least:
            if self.names.count(name) != 1:
                why = nearest(name, names) if name not in names else "several functions have it; rename them"
                raise ConfigError(f"reward_constraints: {name!r} is not the name of one reward function: {why}")
            weight = given[self.names.index(name)]
            if weights is not None and weight:
                raise ConfigError(
                    f"reward_weights: the constrained reward {name!r} has the weight {weight:g}, but its weight is its "
                    "multiplier; give 0 for it, or leave reward_weights out"
                )
        if self.least and len(self.least) == len(names):
            raise ConfigError(
                "reward_constraints: all reward functions are constrained, so there is nothing to maximise; add one "
                "without a constraint"
            )
        self.main_weights = torch.tensor([0.0 if n in self.least else w for n, w in zip(names, given, strict=True)])
        self.reset()

    def reset(self) -> None:
        """Sets all multipliers to 0, as at the beginning of a training."""
        self.multipliers = dict.fromkeys(self.least, 0.0)

    @property
    def weights(self) -> torch.Tensor:
        """The weights that agents learn with, of shape `(F,)`."""
        if not self.least:
            return self.main_weights
        total = 1.0 + sum(self.multipliers.values())
        own = torch.tensor([self.multipliers.get(name, 0.0) for name in self.names])
        return (self.main_weights + own) / total

    def update(self, rewards_per_func: torch.Tensor) -> dict[str, float]:
        """Adapts the multipliers to a rollout.

        Args:
            rewards_per_func (`torch.Tensor` of shape `(B, F)`): of all processes; NaN where a function could not judge.

        Returns:
            `dict[str, float]`: the metrics `constraints/<name>/multiplier`.
        """
        rate, most = self.args.multiplier_learning_rate, self.args.max_multiplier
        for name, least in self.least.items():
            mean = float(rewards_per_func[:, self.names.index(name)].nanmean())
            if mean == mean:  # any completion was judged
                self.multipliers[name] = min(max(self.multipliers[name] + rate * (least - mean), 0.0), most)
        return {f"constraints/{name}/multiplier": value for name, value in self.multipliers.items()}

    def load(self, multipliers: Mapping[str, float]) -> None:
        """Restores saved multipliers; constraints that were not saved keep theirs."""
        self.multipliers |= {name: float(value) for name, value in multipliers.items() if name in self.least}
