"""Rewards: rules that grade a completion, and rewards made of other rewards or of models. Each follows TRL's contract.

Every registered reward is also an attribute of this package, for scripts that take a dotted path:
`hf_rlae.rewards.gsm8k`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_rlae.errors import RewardError, RewardUnavailableError
from hf_rlae.rewards.contract import Reward
from hf_rlae.rewards.registry import get_reward, list_rewards, rewards
from hf_rlae.rewards.rule import RuleReward

if TYPE_CHECKING:
    from hf_rlae.rewards.length_penalties import length_penalty
    from hf_rlae.rewards.pairwise_rewards import pairwise_reward
    from hf_rlae.rewards.reward_models import reward_model
    from hf_rlae.rewards.weighted_sums import weighted_sum

_MAKERS = {
    "length_penalty": "hf_rlae.rewards.length_penalties",
    "pairwise_reward": "hf_rlae.rewards.pairwise_rewards",
    "reward_model": "hf_rlae.rewards.reward_models",
    "weighted_sum": "hf_rlae.rewards.weighted_sums",
}

__all__ = [
    "Reward",
    "RewardError",
    "RewardUnavailableError",
    "RuleReward",
    "get_reward",
    "length_penalty",
    "list_rewards",
    "pairwise_reward",
    "reward_model",
    "rewards",
    "weighted_sum",
]


def __getattr__(name: str) -> Any:
    if name in _MAKERS:
        return getattr(importlib.import_module(_MAKERS[name]), name)
    if name.startswith("_") or name not in list_rewards():
        raise AttributeError(f"module 'hf_rlae.rewards' has no attribute {name!r}")
    return rewards[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MAKERS, *list_rewards()})
