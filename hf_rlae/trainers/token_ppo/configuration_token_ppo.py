"""`TokenPPOArguments` and `TokenPPOConfig`: settings of PPO over tokens."""

from dataclasses import dataclass
from typing import Any, Literal

from trl import GRPOConfig

from hf_rlae.checks import NOT_NEGATIVE, OPTIONAL_POSITIVE, SHARE, Bounds, check_choice, check_fields
from hf_rlae.errors import ConfigError
from hf_rlae.objectives.multi_objective import AGGREGATIONS
from hf_rlae.trainers.defaults import option, set_devices

LOSS_TYPES = ("bnpo", "dapo", "dr_grpo", "grpo")
"""TRL's ways to average the clipped surrogate over tokens; its other losses are not PPO."""

KL_PENALTIES = ("sampled", "full")

_BOUNDS = {
    "kl_coef": NOT_NEGATIVE,
    "kl_target": OPTIONAL_POSITIVE,
    "value_coef": NOT_NEGATIVE,
    "value_epsilon": OPTIONAL_POSITIVE,
    "gamma": SHARE,
    "lam": SHARE,
}


@dataclass
class TokenPPOArguments:
    """The arguments that token-level PPO adds to a TRL configuration. Put it before the configuration's class.

    Args:
        kl_coef (`float`, defaults to 0.2): the KL coefficient, in units of the reward per nat; with `kl_target`, its
            initial value. Source: public code, TRL's former `PPOConfig`.
        kl_target (`float`, *optional*, defaults to 6.0): nats per completion that the adaptive coefficient aims at;
            `None` keeps `kl_coef` fixed. Source: public code, TRL's former `PPOConfig`.
        kl_horizon (`int`, defaults to 10000): number of completions in which the coefficient changes by a fifth at
            most; with `kl_target`, at least `generation_batch_size`. Source: public code, TRL's former `PPOConfig`.
        kl_penalty (`str`, defaults to `"sampled"`): the KL in the reward of a token. `"sampled"`: the log-ratio of the
            token that was sampled, an estimate; source: public code, TRL's former `PPOTrainer`. `"full"`: the KL over
            the whole vocabulary, as in CORY (arXiv 2410.06101), with less variance and two more forward passes per
            rollout.
        gamma (`float`, defaults to 1.0), lam (`float`, defaults to 0.95): of GAE, per token.
        value_coef (`float`, defaults to 0.1): weight of the value loss.
        value_epsilon (`float`, *optional*, defaults to 0.2): clipping of the values, in units of the reward; `None`
            for none. Source: public code, TRL's former `PPOConfig`.
        whiten_advantages (`bool`, defaults to `True`): whether advantages have mean 0 and deviation 1 over the tokens
            of a rollout. Source: public code, TRL's former `PPOTrainer`.
        num_iterations (`int`, defaults to 4): passes over each rollout. Source: public code, TRL's former `PPOConfig`.
        multi_objective_aggregation (`str`, defaults to `"sum_then_normalize"`): `"normalize_then_sum"` gives each
            reward the mean 0 and the deviation 1 over the rollout before their weighted sum.
        scale_rewards (`str`, defaults to `"none"`): must be `"none"`, because there is no group baseline.

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
    """

    kl_coef: float = option(default=0.2, help="KL coefficient, the initial one with kl_target.")
    kl_target: float | None = option(default=6.0, help="Target KL in nats; None: a fixed kl_coef.")
    kl_horizon: int = option(default=10000, help="Completions per change of the KL coefficient by a fifth.")
    kl_penalty: Literal["sampled", "full"] = option(default="sampled", help="Log-ratio, or KL over the vocabulary.")
    gamma: float = option(default=1.0, help="Discount per token, for GAE.")
    lam: float = option(default=0.95, help="Lambda of GAE.")
    value_coef: float = option(default=0.1, help="Weight of the value loss.")
    value_epsilon: float | None = option(default=0.2, help="Clipping of the values; None for none.")
    whiten_advantages: bool = option(default=True, help="Whether to standardise advantages per rollout.")
    num_iterations: int = option(default=4, help="Passes over each rollout.")
    scale_rewards: Literal["none"] = option(default="none", help="Must be none: there is no group baseline.")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        check_fields(self, _BOUNDS)
        args: Any = self
        if args.kl_target is not None:
            check_fields(self, {"kl_horizon": Bounds(args.generation_batch_size, note="generation_batch_size")})
        if args.beta != 0:
            raise ConfigError(
                f"beta={args.beta!r}: the KL to the base model is part of the token rewards, not of the loss; give "
                f"kl_coef={args.beta!r} and leave beta out"
            )
        check_choice("kl_penalty", args.kl_penalty, KL_PENALTIES)
        check_choice("loss_type", args.loss_type, LOSS_TYPES)
        check_choice("multi_objective_aggregation", args.multi_objective_aggregation, AGGREGATIONS)
        for name, expected in (
            ("scale_rewards", "none"),
            ("importance_sampling_level", "token"),
            ("use_vllm", False),
        ):
            value = getattr(self, name)
            if value != expected:
                raise ConfigError(
                    f"{name}={value!r}: PPO over tokens has no group baseline, one advantage and one ratio per token, "
                    f"and generates with transformers; leave {name} out, or give {expected!r}"
                )


@dataclass
class TokenPPOConfig(TokenPPOArguments, GRPOConfig):  # type: ignore[misc]  # a narrower scale_rewards
    """Arguments of [`TokenPPOTrainer`]: those of [`TokenPPOArguments`] and of TRL's `GRPOConfig`.

    If `bf16` is not set, it is on where the device supports it (TRL's default needs an accelerator).
    """

    def __post_init__(self) -> None:
        set_devices(self)
        super().__post_init__()
