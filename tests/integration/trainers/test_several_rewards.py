"""Several rewards in the trainers: normalised sums, and constraints with multipliers."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.errors import ConfigError
from hf_rlae.objectives import group_relative
from hf_rlae.objectives.multi_objective import normalized_sum
from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer, TokenPPOConfig, TokenPPOTrainer
from tests.support import cory, rlae
from tests.support.stopping import StopAt
from tests.support.tiers import slow


def length(completions, **_):
    """A reward of another scale than that of `vowels`."""
    return [100.0 * len(text) for text in completions]


NORMALIZED = {"multi_objective_aggregation": "normalize_then_sum"}
CONSTRAINED = {"reward_constraints": {"length": 4000.0}, "multiplier_learning_rate": 1e-4}


def rewards_of_a_rollout(trainer):
    """The rewards and the advantages of a trainer's first rollout."""
    seen = {}
    original = trainer._advantages

    def advantages(rollouts, rewards):
        seen["advantages"] = original(rollouts, rewards)[0]
        seen["rewards"] = rewards
        seen["per_func"] = torch.tensor([rlae.vowels(rollouts.completions), length(rollouts.completions)]).T
        return original(rollouts, rewards)

    trainer._advantages = advantages
    trainer.train()
    return seen


def test_rlae_normalises_every_reward_in_its_group(tmp_path):
    seen = rewards_of_a_rollout(
        rlae.trainer_of(
            tmp_path, "mixture", [rlae.vowels, length], reward_weights=[1.0, 0.5], max_steps=1, **NORMALIZED
        )
    )
    weights = torch.tensor([1.0, 0.5])
    sums = normalized_sum(seen["per_func"], weights, 4)
    torch.testing.assert_close(seen["advantages"], (sums - sums.mean()) / (sums.std() + 1e-4))
    plain = group_relative(seen["per_func"] @ weights, 4)
    assert not torch.allclose(seen["advantages"], plain, atol=0.1)


def test_rlae_normalises_every_reward_in_its_rollout_for_gae(tmp_path):
    """One completion per prompt is enough."""
    options = {"num_generations": 1, "advantages": "gae", "max_steps": 1, "train": rlae.data(8), **NORMALIZED}
    seen = rewards_of_a_rollout(rlae.trainer_of(tmp_path, "ppo", [rlae.vowels, length], **options))
    torch.testing.assert_close(seen["rewards"], normalized_sum(seen["per_func"], torch.ones(2)))
    assert seen["rewards"].abs().max() < 10


@pytest.mark.parametrize("objective", ["ppo", "mixture"])
def test_one_reward_is_learned_alike(tmp_path, objective):
    """Law: with a single reward, a group's advantages differ from those of the sum by one factor alone."""
    found = {}
    for name, options in (("plain", {}), ("normalized", NORMALIZED)):
        options = {"advantages": "group_relative", "max_steps": 1, "reward_weights": [1.0, 0.0], **options}
        trainer = rlae.trainer_of(tmp_path / name, objective, [rlae.vowels, length], **options)
        found[name] = rewards_of_a_rollout(trainer)["advantages"]
    factors = found["normalized"] / found["plain"]
    torch.testing.assert_close(factors, factors.mean().expand_as(factors), atol=1e-3, rtol=0.0)


def test_token_ppo_normalises_every_reward_in_its_rollout(tmp_path):
    trainer = cory.trainer_of(
        tmp_path, TokenPPOTrainer, [rlae.vowels, length], config_class=TokenPPOConfig, beta=0.0, lam=1.0,
        kl_coef=0.0, kl_target=None, **NORMALIZED,
    )  # fmt: skip
    trainer.model.train()
    output = trainer._generate_and_score_completions([dict(trainer.train_dataset[row // 4]) for row in range(8)])
    texts = trainer.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
    expected = normalized_sum(torch.tensor([rlae.vowels(texts), length(texts)]).T, torch.ones(2))
    torch.testing.assert_close(output["returns"][:, 0], expected, atol=1e-5, rtol=0.0)


MAKERS = {
    "rlae": lambda folder, **options: rlae.trainer_of(folder, "mixture", **options),
    "rlae, GAE": lambda folder, **options: rlae.trainer_of(folder, "ppo", **options),
    "cory": lambda folder, **options: cory.trainer_of(folder, CoryTrainer, **_renamed(options)),
    "cory, RLOO": lambda folder, **options: cory.trainer_of(folder, CoryRLOOTrainer, **_renamed(options)),
    "cory, PPO": lambda folder, **options: cory.trainer_of(folder, CoryPPOTrainer, **_renamed(options), beta=0.0),
}


def _renamed(options):
    return {**{name: value for name, value in options.items() if name != "reward"}, "rewards": options["reward"]}


@pytest.mark.parametrize("name", MAKERS)
def test_multipliers_follow_the_means_of_rollouts(tmp_path, name):
    """`lambda += eta (least - mean)` over all completions of a rollout, those of all agents; evaluations change
    nothing and show the main reward."""
    options = {"reward": [rlae.vowels, length], "max_steps": 8, "eval_dataset": rlae.data(4), **CONSTRAINED}
    trainer = MAKERS[name](tmp_path, **options)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "constraints/length/multiplier" in log]
    agents = 2 if name.startswith("cory") else 1
    expected, steps = 0.0, []
    for log in logs:
        expected += 1e-4 * (4000.0 - log["rewards/length/mean"] / agents)
        steps.append(log["constraints/length/multiplier"])
        assert steps[-1] == pytest.approx(expected, rel=1e-4)
    assert len(steps) == 2
    assert steps[1] > steps[0] > 0.3
    found = trainer.evaluate()
    assert trainer.constraints.multipliers["length"] == steps[-1]
    assert found["eval_reward"] == pytest.approx(found["eval_rewards/vowels/mean"], abs=1e-6)
    assert found["eval_rewards/length/mean"] > 1


@pytest.mark.parametrize("name", ["rlae", "cory"])
def test_multipliers_weigh_what_is_learned(tmp_path, name):
    """With a multiplier of m, the constrained reward has the weight m / (1 + m)."""
    trainer = MAKERS[name](tmp_path, reward=[rlae.vowels, length], **CONSTRAINED)
    if name == "cory":
        output = cory.rollout(trainer)
        texts = [
            trainer.processing_class.batch_decode(output[f"{agent}/completion_ids"], skip_special_tokens=True)
            for agent in trainer.agents.names
        ]
        learned = output["agent-1/rewards"]
    else:
        trainer.args.max_steps = 1
        seen = rewards_of_a_rollout(trainer)
        texts, learned = [], seen["rewards"]
    multiplier = trainer.constraints.multipliers["length"]
    assert multiplier > 0.3
    weights = torch.tensor([1.0, multiplier]) / (1 + multiplier)
    per_func = sum(torch.tensor([rlae.vowels(each), length(each)]).T for each in texts) if texts else seen["per_func"]
    torch.testing.assert_close(learned, per_func @ weights)
    if name == "cory":
        assert trainer.reward_weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", ["rlae", "cory"])
@pytest.mark.parametrize("stop", [3, *slow(4)])
def test_a_resumed_run_has_the_same_multipliers(tmp_path, name, stop):
    """Bit for bit, within a rollout and between two."""
    options = {
        "reward": [rlae.vowels, length], "max_steps": 10, "save_strategy": "steps", "save_steps": stop,
        "multi_objective_aggregation": "normalize_then_sum", **CONSTRAINED,
    }  # fmt: skip
    whole = MAKERS[name](tmp_path / "whole", **options)
    whole.train()
    MAKERS[name](tmp_path / "part", callbacks=[StopAt(stop)], **options).train()
    resumed = MAKERS[name](tmp_path / "part", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.constraints.multipliers == whole.constraints.multipliers
    assert whole.constraints.multipliers["length"] > 0.3
    trained = {key: value for key, value in whole.model.named_parameters() if value.requires_grad}
    for key, value in resumed.model.named_parameters():
        assert not value.requires_grad or torch.equal(value, trained[key]), key


@pytest.mark.parametrize("name", ["rlae", "cory"])
def test_a_new_training_begins_without_multipliers(tmp_path, name):
    trainer = MAKERS[name](tmp_path, reward=[rlae.vowels, length], max_steps=1, **CONSTRAINED)
    trainer.train()
    first = dict(trainer.constraints.multipliers)
    trainer.train()
    assert trainer.constraints.multipliers["length"] == pytest.approx(first["length"], rel=0.2)


@pytest.mark.parametrize("name", ["rlae", "cory"])
def test_constraints_are_checked_before_any_work(tmp_path, name):
    with pytest.raises(ConfigError, match="'lenght' is not the name of one reward function: did you mean 'length'"):
        MAKERS[name](tmp_path, reward=[rlae.vowels, length], reward_constraints={"lenght": 1.0})
