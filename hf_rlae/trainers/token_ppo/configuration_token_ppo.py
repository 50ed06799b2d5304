"""`TokenPPOArguments` and `TokenPPOConfig`: how PPO over tokens is done."""

import math
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.trainers.precision import default_bf16

LOSS_TYPES = ("bnpo", "dapo", "dr_grpo", "grpo")
"""TRL's ways of averaging the clipped surrogate over tokens; its other losses are no PPO."""


@dataclass
class TokenPPOArguments:
    """What token-level PPO adds to a TRL configuration; put it before the configuration's class.

    Args:
        kl_coef (`float`, defaults to 0.2): the KL coefficient, in units of the reward per nat; the first one where it
            adapts. Source: public code, TRL's former `PPOConfig`.
        kl_target (`float`, *optional*, defaults to 6.0): nats a text that the coefficient is adapted to reach; `None`
            keeps `kl_coef` fixed. Source: public code, TRL's former `PPOConfig`.
        kl_horizon (`int`, defaults to 10000): in how many texts the coefficient changes by a fifth at most; at least
            `generation_batch_size` where it adapts. Source: public code, TRL's former `PPOConfig`.
        gamma (`float`, defaults to 1.0), lam (`float`, defaults to 0.95): of GAE, per token.
        value_coef (`float`, defaults to 0.1): weight of the value loss.
        value_epsilon (`float`, *optional*, defaults to 0.2): clipping of the values, in units of the reward; `None`
            for none. Source: public code, TRL's former `PPOConfig`.
        whiten_advantages (`bool`, defaults to `True`): whether advantages get mean 0 and deviation 1 over the tokens of
            a rollout. Source: public code, TRL's former `PPOTrainer`.
        num_iterations (`int`, defaults to 4): how many times a rollout is gone through. Source: public code, TRL's
            former `PPOConfig`.
        scale_rewards (`str`, defaults to `"none"`): no other value makes sense, as there is no group baseline.

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
    """

    kl_coef: float = field(default=0.2, metadata={"help": "KL coefficient of token rewards; the first if adaptive."})
    kl_target: float | None = field(
        default=6.0, metadata={"help": "Nats a text that the KL coefficient is adapted to reach; None keeps it fixed."}
    )
    kl_horizon: int = field(
        default=10000, metadata={"help": "In how many texts the KL coefficient changes by a fifth at most."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token, for GAE."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    value_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_epsilon: float | None = field(default=0.2, metadata={"help": "Clipping of the values; None for none."})
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Whether advantages are standardised over the tokens of a rollout."}
    )
    num_iterations: int = field(default=4, metadata={"help": "How many times a rollout is gone through."})
    scale_rewards: str = field(default="none", metadata={"help": "Must be none: there is no group baseline."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        self._check_token_ppo_numbers()
        self._check_token_ppo_loss()

    def _check_token_ppo_numbers(self) -> None:
        for name, least, is_open, is_optional in (
            ("kl_coef", 0, False, False),
            ("kl_target", 0, True, True),
            ("kl_horizon", self.generation_batch_size, False, False),  # type: ignore[attr-defined]
            ("value_coef", 0, False, False),
            ("value_epsilon", 0, True, True),
        ):
            value = getattr(self, name)
            if (value is None and is_optional) or (name == "kl_horizon" and self.kl_target is None):
                continue
            if not _is_number(value) or value < least or (is_open and value == least):
                raise ConfigError(
                    f"{name}={value!r}: it must be a finite number {'above' if is_open else 'of at least'} {least}"
                    + " (generation_batch_size)" * (name == "kl_horizon")
                )
        for name in ("gamma", "lam"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ConfigError(f"{name}={value!r}: it must be a number from 0 to 1")

    def _check_token_ppo_loss(self) -> None:
        args: Any = self
        if args.beta != 0:
            raise ConfigError(
                f"beta={args.beta!r}: the KL to the base is in the token rewards, not in the loss; give "
                f"kl_coef={args.beta!r} and leave beta out"
            )
        if args.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type={args.loss_type!r}: {nearest(str(args.loss_type), LOSS_TYPES)}")
        for name, expected in (
            ("scale_rewards", "none"),
            ("importance_sampling_level", "token"),
            ("multi_objective_aggregation", "sum_then_normalize"),
            ("use_vllm", False),
        ):
            value = getattr(self, name)
            if value != expected:
                raise ConfigError(
                    f"{name}={value!r}: PPO over tokens has no group baseline, an advantage and a ratio at each token, "
                    f"and samples with transformers; leave {name} out, or give {expected!r}"
                )


@dataclass
class TokenPPOConfig(TokenPPOArguments, GRPOConfig):
    """Arguments of [`TokenPPOTrainer`]: those of [`TokenPPOArguments`] and of TRL's `GRPOConfig`.

    Where `bf16` is not set it is on where the device has it (TRL's default refuses a machine without an accelerator).
    """

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = default_bf16(bool(self.fp16), bool(self.use_cpu))
        super().__post_init__()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
