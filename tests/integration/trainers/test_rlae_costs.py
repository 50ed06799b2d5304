"""`member_cost`: a price per token that a member runs; and the training of `select="prompt"`."""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset

from hf_rlae import ConfigError, EnsembleForCausalLM, PolicyModel
from tests.support.models import constant
from tests.support.rlae import ensemble_of, members, policy_for, trainer_of
from tests.support.tokenizers import byte_level_bpe

OBJECTIVES = ("ppo", "mappo")


def writers(*tokens: str):
    """One member per text of one token, which it always writes; none ends a text."""
    tokenizer = byte_level_bpe()
    found = []
    for token in tokens:
        logits = torch.full((len(tokenizer),), -20.0)
        logits[tokenizer(token)["input_ids"][0]] = 20.0
        found.append(constant(logits, tokenizer))
    return found


def writing_ensemble(objective, *tokens, span_length=2, **settings):
    """Those members with a policy that reads the text."""
    given = writers(*tokens)
    length = None if settings.get("select") == "prompt" else span_length
    policy = policy_for(given, objective, "text", span_length=length)
    return EnsembleForCausalLM.from_members(
        given, policy, span_length=span_length, end_token_ids=[[]] * len(given), **settings
    )


def ones(completions, **_):
    return [1.0] * len(completions)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("advantages", ["gae", "group_relative"])
def test_of_members_that_are_as_good_the_cheap_one_is_used(tmp_path, objective, advantages):
    """All members earn the same reward, so the price alone decides which one is drawn."""
    ensemble = writing_ensemble(objective, "a", "b")
    options = {"advantages": advantages, "scale_rewards": "batch", "max_steps": 24, "num_iterations": 1}
    trainer = trainer_of(
        tmp_path, objective, ones, ensemble, member_cost=[0.0, 0.1], per_device_train_batch_size=8, **options
    )
    trainer.train()
    shares = [log["weights/LlamaForCausalLM 1/mean"] for log in trainer.state.log_history if "reward" in log]
    assert sum(shares[:4]) / 4 > 0.35
    assert sum(shares[-4:]) / 4 < 0.2


def test_costs_are_logged_beside_rewards(tmp_path):
    ensemble = writing_ensemble("ppo", "a", "b", draw="span")
    trainer = trainer_of(
        tmp_path,
        reward=ones,
        ensemble=ensemble,
        eval_dataset=Dataset.from_dict({"prompt": ["She said", "and they"]}),
        member_cost=[0.5, 2.0],
        eval_do_sample=True,
        max_steps=1,
    )
    trainer.train()
    log = trainer.state.log_history[0]
    counts = [log[f"member_tokens/LlamaForCausalLM {index}/mean"] for index in range(2)]
    assert sum(counts) == log["member_tokens/mean"] == 5  # one member for each of 5 tokens
    assert log["reward"] == 1.0
    assert log["rewards/ones/mean"] == 1.0
    assert log["member_cost"] == pytest.approx(0.5 * counts[0] + 2.0 * counts[1])
    assert log["net_reward"] == pytest.approx(1.0 - log["member_cost"])
    found = trainer.evaluate()
    assert found["eval_reward"] == 1.0
    assert found["eval_member_tokens/mean"] == 5
    ensemble.config.draw = None  # every member of the mixture runs
    found = trainer.evaluate()
    assert found["eval_member_tokens/mean"] == 10
    assert found["eval_member_cost"] == pytest.approx(5 * 2.5)


def test_advantages_are_those_of_rewards_less_costs(tmp_path):
    """A cost at a span counts from that span on: with lambda and gamma 1, the rest of the completion's cost."""
    ensemble = writing_ensemble("ppo", "a", "b")
    options = {"advantages": "gae", "gamma": 1.0, "lam": 1.0, "whiten_advantages": False, "max_steps": 1}
    trainer = trainer_of(tmp_path, reward=ones, ensemble=ensemble, member_cost=[0.25, 1.0], **options)
    seen = []
    inner = trainer._advantages

    def note(rollouts, rewards):
        found = inner(rollouts, rewards)
        seen.append((rollouts, *found))
        return found

    trainer._advantages = note
    trainer.train()
    rollouts, _, returns = seen[0]
    costs = rollouts.member_tokens.float() @ torch.tensor([0.25, 1.0])
    rest = costs.flip(1).cumsum(1).flip(1)
    assert rollouts.member_tokens.sum(2).tolist() == [[2, 2, 1]] * 8
    assert len(set(costs.flatten().tolist())) > 2
    torch.testing.assert_close(trainer.value_scale.in_rewards(returns), 1.0 - rest)


def test_no_price_is_the_same_as_a_price_of_zero(tmp_path):
    """Bit-exactly."""
    logs = []
    for cost in (None, 0.0, [0.0, 0.0]):
        trainer = trainer_of(tmp_path / str(cost), ensemble=ensemble_of(), member_cost=cost, max_steps=3)
        trainer.train()
        logs.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert logs[0] == logs[1] == logs[2]


@pytest.mark.parametrize(
    ("options", "policy", "settings", "message"),
    [
        ({"member_cost": [1.0]}, {}, {"span_length": 1}, "span_length=1 and observation='members'"),
        ({"member_cost": [1.0], "span_length": 1}, {}, {}, "span_length=1 and observation='members'"),
        ({"member_cost": [1.0], "span_length": 2}, {}, {"span_length": 1}, ""),
        ({"member_cost": [0.1, 0.2, 0.3]}, {}, {}, "3 prices for 2 members"),
        ({"member_cost": [0.1, 0.2], "objective": "mixture"}, {}, {}, "objective='mixture'"),
        ({"member_cost": [0.1, 0.2]}, {"action": "dirichlet"}, {}, "action='dirichlet'"),
        (
            {"member_cost": [0.1, 0.2], "multi_objective_aggregation": "normalize_then_sum"},
            {},
            {},
            "units of the reward",
        ),
        ({"member_cost": [0.1, 0.2]}, {"action": "dirichlet"}, {"max_active_members": 1}, ""),
        ({"member_cost": [0.1, 0.2]}, {"action": "dirichlet"}, {"draw": "span"}, ""),
        ({"member_cost": [0.0, 0.0]}, {"action": "dirichlet"}, {}, ""),
        ({"member_cost": [0.1, -0.2]}, {}, {}, r"member_cost=\[0.1, -0.2\]"),
        ({"member_cost": "cheap"}, {}, {}, "member_cost='cheap'"),
        ({"span_length": 4}, {}, {"select": "prompt"}, "span_length=4: the ensemble has select="),
    ],
)
def test_prices_that_cannot_work_are_refused(tmp_path, options, policy, settings, message):
    objective = options.get("objective", "ppo")
    observation = "text" if settings.get("select") else "members"
    ensemble = ensemble_of(objective, observation=observation, policy=policy, **settings)
    if not message:
        trainer_of(tmp_path, ensemble=ensemble, **options)
        return
    with pytest.raises(ConfigError, match=message):
        trainer_of(tmp_path, ensemble=ensemble, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"member_cost": 0.1}, "all have the same price"),
        ({"member_cost": [0.1, 0.2], "advantages": "group_relative"}, "scale_rewards='group'"),
    ],
)
def test_prices_that_are_likely_mistakes_are_warned_of(tmp_path, caplog, options, message):
    with caplog.at_level(logging.WARNING, logger="hf_rlae"):
        trainer_of(tmp_path, ensemble=ensemble_of(), **options)
    assert message in caplog.text


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_policy_learns_which_member_to_pick_from_the_prompt(tmp_path, objective):
    """Two kinds of prompts, each with a member of its own; one decision per completion."""
    ensemble = writing_ensemble(objective, "a", "b", select="prompt", max_active_members=1)
    prompts = ["She said 7", "def f(x):"] * 4
    wanted = dict(zip(prompts[:2], "ab", strict=True))

    def right(completions, prompts, **_):
        return [float(set(text) == {wanted[prompt]}) for text, prompt in zip(completions, prompts, strict=True)]

    trainer = trainer_of(
        tmp_path,
        objective,
        right,
        ensemble,
        Dataset.from_dict({"prompt": prompts}),
        eval_dataset=Dataset.from_dict({"prompt": prompts[:2]}),
        per_device_train_batch_size=16,
        steps_per_generation=1,
        num_iterations=2,
        max_completion_length=3,
        max_steps=60,
        learning_rate=2e-2,
    )
    trainer.train()
    assert trainer.evaluate()["eval_reward"] == 1.0
    assert ensemble.policy.config.span_length is None
    assert trainer.buffer.rollouts.span_mask.shape[1] == 1
    trainer.save_model()
    assert PolicyModel.from_pretrained(tmp_path).config.span_length is None
    trainer.create_model_card()
    assert 'select="prompt")' in (tmp_path / "README.md").read_text()


def test_members_by_name_are_loaded_when_training_begins(tmp_path):
    for index, (model, tokenizer) in enumerate(members()):
        model.save_pretrained(tmp_path / str(index))
        tokenizer.save_pretrained(tmp_path / str(index))
    names = [str(tmp_path / str(index)) for index in range(2)]
    ensemble = EnsembleForCausalLM.from_members(
        names, policy_for(members(), observation="text", span_length=None), select="prompt"
    )
    assert not any(member.is_loaded for member in ensemble.members)
    trainer_of(tmp_path / "run", ensemble=ensemble, max_steps=1).train()
    assert all(member.is_loaded for member in ensemble.members)
