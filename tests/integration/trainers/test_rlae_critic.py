"""The critic in training: its start, the unit of its targets, and that it does not spoil what the actors learn."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from hf_rlae import EnsembleForCausalLM
from tests.support.rlae import favouring, policy_for, trainer_of
from tests.support.tiers import slow


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3], ids=["small", "one", "large"])
def test_the_first_advantages_are_rewards_less_their_mean(tmp_path, size):
    """Rewards of any size and mean: the critic starts within 1% of a deviation of their mean."""
    rewards = []

    def reward(completions, **_):
        rewards.extend(size * (5.0 + index % 3) for index in range(len(completions)))
        return rewards[-len(completions) :]

    trainer = trainer_of(tmp_path, "ppo", reward, whiten_advantages=False, max_steps=1)
    trainer.train()
    rollouts, paid = trainer.buffer.rollouts, torch.tensor(rewards[:8])
    deviation = float(paid.std(correction=0))
    assert (trainer.value_scale.mean, trainer.value_scale.deviation) == pytest.approx((float(paid.mean()), deviation))
    mask = rollouts.span_mask
    expected = (paid - paid.mean())[:, None].expand(mask.shape)
    torch.testing.assert_close(rollouts.advantages[mask], expected[mask], atol=0.011 * deviation, rtol=0)
    torch.testing.assert_close(rollouts.returns[mask], (expected / deviation)[mask], atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
@pytest.mark.parametrize("objective", ["ppo", "mappo"])
def test_rewards_rise_at_a_high_learning_rate(tmp_path, objective, seed):
    """One prompt, rewards from 0 to 1, learning rate 1e-2. With an untamed critic, rewards fell from 0.57 to 0.45."""

    def share_of_a(completions, **_):
        return [text.count("a") / len(text) for text in completions]

    given = [favouring("a"), favouring("b")]
    ensemble = EnsembleForCausalLM.from_members(given, policy_for(given, objective, span_length=1), span_length=1)
    trainer = trainer_of(
        tmp_path, objective, share_of_a, ensemble, Dataset.from_dict({"prompt": ["Once upon a"] * 4}), max_steps=16,
        num_generations=16, per_device_train_batch_size=16, steps_per_generation=1, num_iterations=2,
        max_completion_length=12, learning_rate=1e-2, seed=seed,
    )  # fmt: skip
    trainer.train()
    rewards, losses = (
        [entry[name] for entry in trainer.state.log_history if name in entry] for name in ("reward", "value/loss")
    )
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 3 * 0.15
    assert max(losses) < 3.0  # in deviations of the rewards, squared
