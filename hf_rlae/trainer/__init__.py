"""Trainers, and what they share: durable checkpoints, checks for non-finite values, calls of reward functions."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "CoryArguments": "hf_rlae.trainer.configuration_cory",
    "CoryConfig": "hf_rlae.trainer.configuration_cory",
    "CoryMixin": "hf_rlae.trainer.cory_trainer",
    "CoryPPOConfig": "hf_rlae.trainer.cory_ppo",
    "CoryPPOTrainer": "hf_rlae.trainer.cory_ppo",
    "CoryRLOOConfig": "hf_rlae.trainer.configuration_cory",
    "CoryRLOOTrainer": "hf_rlae.trainer.cory_trainer",
    "CoryTrainer": "hf_rlae.trainer.cory_trainer",
    "RLAEConfig": "hf_rlae.trainer.configuration_rlae",
    "RLAETrainer": "hf_rlae.trainer.rlae_trainer",
    "TokenPPOArguments": "hf_rlae.trainer.configuration_token_ppo",
    "TokenPPOConfig": "hf_rlae.trainer.configuration_token_ppo",
    "TokenPPOTrainer": "hf_rlae.trainer.token_ppo_trainer",
    "WeightingReport": "hf_rlae.trainer.weighting_report",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_rlae.trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
