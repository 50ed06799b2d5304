"""Pairwise rewards in the trainers: which completions are compared."""

from __future__ import annotations

import pytest

from hf_rlae.rewards import pairwise_reward
from hf_rlae.trainers import CoryTrainer, TokenPPOConfig, TokenPPOTrainer
from tests.support import cory, rlae


class Vowels:
    """A judge that prefers the larger share of vowels, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, prompts, first, second, number, **columns):
        self.asked += zip(prompts, first, second, number, strict=True)
        return [0.5 + (one - other) / 2 for one, other in zip(rlae.vowels(first), rlae.vowels(second), strict=True)]


def rlae_trainer(folder, reward):
    return rlae.trainer_of(folder, "mixture", reward, max_steps=4)


def cory_trainer(folder, reward):
    return cory.trainer_of(folder, CoryTrainer, reward, max_steps=4)


def ppo_trainer(folder, reward):
    return cory.trainer_of(folder, TokenPPOTrainer, reward, config_class=TokenPPOConfig, max_steps=4, beta=0.0)


@pytest.mark.parametrize("make", [rlae_trainer, cory_trainer, ppo_trainer])
def test_completions_of_one_prompt_are_compared(tmp_path, make):
    """The mean of every group is one half, and no pair is of two prompts; CORY's observers are judged by the original
    prompt."""
    judge = Vowels()
    trainer = make(tmp_path, [pairwise_reward(judge), rlae.vowels])
    trainer.train()
    means = [log["rewards/pairwise_reward/mean"] for log in trainer.state.log_history if "reward" in log]
    agents = 2 if make is cory_trainer else 1
    assert means == pytest.approx([agents / 2] * len(means))
    assert judge.asked
    dataset = rlae.data()
    assert {(prompt, number) for prompt, _, _, number in judge.asked} <= set(
        zip(dataset["prompt"], dataset["number"], strict=True)
    )
    assert len({prompt for prompt, *_ in judge.asked}) > 1
