"""Settings that all objectives share."""

from __future__ import annotations

from dataclasses import dataclass

from hf_rlae.checks import NOT_NEGATIVE, OPTIONAL_POSITIVE, Bounds, check_choice, check_fields

REDUCTIONS = ("token", "sequence")
"""How the policy's loss is averaged; see `ObjectiveSettings`."""
_BOUNDS = {
    "epsilon": Bounds(above=0, below=1),
    "epsilon_high": OPTIONAL_POSITIVE,
    "value_epsilon": OPTIONAL_POSITIVE,
    "value_coef": NOT_NEGATIVE,
    "entropy_coef": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class ObjectiveSettings:
    """Clipping, coefficients, and how the policy's loss is averaged.

    Args:
        epsilon (`float`, defaults to 0.2): ratios below `1 - epsilon` and above `1 + epsilon` are clipped.
            Source: public code of RLAE.
        epsilon_high (`float`, *optional*): the upper bound, if it differs; DAPO (arXiv 2503.14476) recommends
            0.28. As in TRL.
        value_epsilon (`float`, *optional*, defaults to 0.2): the critic's estimates are clipped to this distance from
            those of the rollout, in their own unit; `None` for no clipping. In `RLAETrainer` the unit is the running
            standard deviation of the rewards. Source: ours.
        value_coef (`float`, defaults to 0.5): of the value loss. Source: public code of RLAE.
        entropy_coef (`float`, defaults to 0.01): of the entropy bonus, per nat. Source: public code of RLAE. The
            `mixture` objective has its own default, 0.03; see there.
        reduction (`str`, defaults to `"token"`): `"token"`: all tokens of the batch have the same weight, as in DAPO
            (arXiv 2503.14476). `"sequence"`: tokens are averaged per completion first, so all completions have the same
            weight, as in GRPO (arXiv 2402.03300). With `ppo` and `mappo` the items are spans, not tokens. Value loss
            and entropy are always means over all spans.

    Raises:
        ConfigError: a value is out of range; the message names the field.

    Example:

    >>> ObjectiveSettings(epsilon=0.1, reduction="sequence").value_coef
    0.5
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None
    value_epsilon: float | None = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.01
    reduction: str = "token"

    def __post_init__(self) -> None:
        check_fields(self, _BOUNDS)
        check_choice("reduction", self.reduction, REDUCTIONS)
