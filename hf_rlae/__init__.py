"""hf_rlae: several language models decode one text together inside transformers' `generate`."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "ByteVocabulary": "hf_rlae.vocabulary",
    "CoryArguments": "hf_rlae.trainer",
    "CoryConfig": "hf_rlae.trainer",
    "CoryMixin": "hf_rlae.trainer",
    "CoryPPOConfig": "hf_rlae.trainer",
    "CoryPPOTrainer": "hf_rlae.trainer",
    "CoryRLOOConfig": "hf_rlae.trainer",
    "CoryRLOOTrainer": "hf_rlae.trainer",
    "CoryTrainer": "hf_rlae.trainer",
    "EnsembleCache": "hf_rlae.ensemble",
    "EnsembleConfig": "hf_rlae.ensemble",
    "EnsembleForCausalLM": "hf_rlae.ensemble",
    "EnsembleLogitsProcessor": "hf_rlae.ensemble",
    "EntropyPolicy": "hf_rlae.policy",
    "Member": "hf_rlae.member",
    "PerplexityPolicy": "hf_rlae.policy",
    "PolicyConfig": "hf_rlae.policy",
    "PolicyModel": "hf_rlae.policy",
    "PolicyOutput": "hf_rlae.policy",
    "PolicyState": "hf_rlae.policy",
    "RLAEConfig": "hf_rlae.trainer",
    "RLAETrainer": "hf_rlae.trainer",
    "StaticPolicy": "hf_rlae.policy",
    "UniformPolicy": "hf_rlae.policy",
    "UnionVocabulary": "hf_rlae.vocabulary",
    "WeightingReport": "hf_rlae.trainer",
    "get_reward": "hf_rlae.rewards",
    "get_task": "hf_rlae.tasks",
    "length_penalty": "hf_rlae.rewards",
    "list_rewards": "hf_rlae.rewards",
    "list_tasks": "hf_rlae.tasks",
    "load_member": "hf_rlae.zoo",
    "load_members": "hf_rlae.zoo",
    "load_policy": "hf_rlae.zoo",
    "load_task": "hf_rlae.tasks",
    "reward_model": "hf_rlae.rewards",
    "weighted_sum": "hf_rlae.rewards",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_rlae' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
