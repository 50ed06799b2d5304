"""Trainers, and what they share: durable checkpoints, checks for non-finite values, calls of reward functions."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "RLAEConfig": "hf_rlae.trainer.configuration_rlae",
    "RLAETrainer": "hf_rlae.trainer.rlae_trainer",
    "WeightingReport": "hf_rlae.trainer.weighting_report",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_rlae.trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
