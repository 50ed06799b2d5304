"""CORY trainers leave out completions that could not be judged, as TRL does."""

from __future__ import annotations

import math

import pytest

from hf_rlae.trainers import CoryConfig, CoryRLOOTrainer, CoryTrainer
from hf_rlae.trainers.cory.configuration_cory import CoryRLOOConfig
from tests.support.cory import trainer_of
from tests.support.rlae import vowels
from tests.support.tiers import slow


def partly(completions, **_):
    """Vowels; `None` for two of the eight completions of a rollout."""
    return [None if at in (1, 6) else reward for at, reward in enumerate(vowels(completions))]


def never(completions, **_):
    return [None] * len(completions)


@pytest.mark.parametrize(
    ("kind", "settings", "reward"),
    [
        (CoryTrainer, CoryConfig, partly),
        *slow((CoryTrainer, CoryConfig, never), (CoryRLOOTrainer, CoryRLOOConfig, partly)),
        *slow((CoryRLOOTrainer, CoryRLOOConfig, never)),
    ],
)
def test_losses_stay_finite(kind, settings, reward, tmp_path):
    trainer = trainer_of(tmp_path, kind, reward, config_class=settings, max_steps=2)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    assert all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in logs)
