"""Training learns: the member with the rewarded token receives the weight."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM
from tests.support.rlae import data, favouring, policy_for, trainer_of
from tests.support.tiers import slow


def share_of_a(completions, **_):
    return [text.count("a") / 4 for text in completions]


@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
@pytest.mark.parametrize("objective", ["ppo", "mappo", "mixture"])
def test_the_right_member_gets_the_weight(tmp_path, objective, seed):
    """The first member writes `a`, the second `b`; `a` is rewarded. Deterministic weights before and after."""
    pairs = [favouring("a"), favouring("b")]
    right = seed % 2
    given = pairs[::-1] if right else pairs
    with torch.random.fork_rng(devices=[]):
        policy = policy_for(given, objective, span_length=2)
    ensemble = EnsembleForCausalLM.from_members(given, policy, span_length=2)
    trainer = trainer_of(
        tmp_path, objective, share_of_a, ensemble, data(4), eval_dataset=data(2), max_steps=40, num_generations=8,
        per_device_train_batch_size=16, steps_per_generation=1, max_completion_length=4, seed=seed, logging_steps=40,
        learning_rate=5e-3,
    )  # fmt: skip
    name = f"eval_weights/{trainer.member_names[right]}/mean"
    before = trainer.evaluate()[name]
    assert before == pytest.approx(0.5, abs=0.02)
    trainer.train()
    after = trainer.evaluate()
    assert after[name] > 0.8, after[name]
    assert after["eval_reward"] > 0.9


@pytest.mark.slow
def test_with_shuffled_rewards_nothing_is_learned(tmp_path):
    """Control: rewards that do not depend on the completions do not change the weights, on average."""
    moved = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)

        def noise(completions, generator=generator, **_):
            return torch.rand(len(completions), generator=generator).tolist()

        given = [favouring("a"), favouring("b")]
        ensemble = EnsembleForCausalLM.from_members(given, policy_for(given, "mixture", span_length=2), span_length=2)
        trainer = trainer_of(
            tmp_path, "mixture", noise, ensemble, data(4), eval_dataset=data(2), max_steps=40, num_generations=8,
            per_device_train_batch_size=16, steps_per_generation=1, max_completion_length=4, seed=seed,
            logging_steps=40, learning_rate=5e-3,
        )  # fmt: skip
        trainer.train()
        moved.append(trainer.evaluate()[f"eval_weights/{trainer.member_names[0]}/mean"])
    assert 0.2 < sum(moved) / 2 < 0.8
