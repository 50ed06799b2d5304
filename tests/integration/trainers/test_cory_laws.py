"""Guarantees of CORY."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from hf_rlae.trainers import CoryRLOOTrainer, CoryTrainer
from hf_rlae.trainers.cory.draws import draws_apart
from hf_rlae.trainers.cory.roles import order_at, role_labels
from tests.support.cory import adapters_of, base_of, gradients_of, in_training, lora, rollout, trainer_of
from tests.support.rlae import assert_same, vowels

AGENTS = st.lists(st.text("abcxyz", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)
STEPS = st.integers(0, 1000)


@given(AGENTS, STEPS, st.integers(1, 20))
def test_as_many_exchanges_as_agents_are_none(agents, step, every):
    assert order_at(step + len(agents) * every, agents, every) == order_at(step, agents, every)
    assert sorted(order_at(step, agents, every)) == sorted(agents)


@given(AGENTS, STEPS, st.integers(1, 20))
def test_within_a_period_every_agent_has_every_role_once(agents, first, every):
    orders = [order_at(first + turn * every, agents, every) for turn in range(len(agents))]
    for position in range(len(agents)):
        assert sorted(order[position] for order in orders) == sorted(agents)


@given(AGENTS, STEPS)
def test_never_means_never(agents, step):
    assert order_at(step, agents, 0) == agents


def test_roles():
    assert [order_at(step, ["a", "b"], 5)[0] for step in (0, 4, 5, 9, 10)] == ["a", "a", "b", "b", "a"]
    assert [order_at(step, ["a", "b", "c"], 1) for step in range(3)] == [
        ["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"],
    ]  # fmt: skip
    assert role_labels(["pioneer", *["observer"] * 3]) == ["pioneer", "observer-1", "observer-2", "observer-3"]


def test_draws_apart_repeat_and_differ():
    def draw(seed, position):
        torch.manual_seed(seed)
        with draws_apart(position):
            return torch.rand(4).tolist()

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(seed, position)) for seed in (0, 1) for position in (1, 2)}) == 4


@pytest.mark.parametrize(
    ("plain", "config", "cory"),
    [(GRPOTrainer, GRPOConfig, CoryTrainer), (RLOOTrainer, RLOOConfig, CoryRLOOTrainer)],
    ids=["GRPO", "RLOO"],
)
def test_an_agent_that_shares_nothing_learns_what_it_would_learn_alone(tmp_path, plain, config, cory):
    """Bit-exactly: rollouts, advantages, KL, clipping, optimizer, order of prompts, buffer."""
    options = {"gradient_accumulation_steps": 2, "max_steps": 5, "max_grad_norm": 0.05, "weight_decay": 0.01}
    alone = trainer_of(
        tmp_path / "alone", plain, config_class=config, bf16=False, disable_dropout=True,
        peft_config=lora(lora_dropout=0.5), **options,
    )  # fmt: skip
    alone.train()
    apart = {"knowledge_transfer": False, "role_exchange_steps": 0, "credit": "own"}
    team = trainer_of(tmp_path / "team", cory, peft_config=lora(lora_dropout=0.5), **apart, **options)
    team.train()
    found = adapters_of(team)
    expected = {
        key.replace(".default.", "."): value.detach()
        for key, value in alone.model.named_parameters()
        if value.requires_grad
    }
    assert_same(found["agent-1"], expected)
    assert max(value.abs().max() for key, value in expected.items() if "lora_B" in key) > 1e-3
    assert any(not torch.equal(found["agent-2"][key], value) for key, value in expected.items())
    for mine, other in zip(alone.state.log_history[:-1], team.state.log_history[:-1], strict=True):
        assert other["agent/agent-1/entropy"] == mine["entropy"]
        assert other["agent/agent-1/grad_norm"] == mine["grad_norm"]
        if "reward" in mine:
            assert other["agent/agent-1/kl"] == mine["kl"]
            assert other["role/pioneer/reward"] == mine["reward"]


def test_the_team_is_paid_the_sum(tmp_path):
    seen = []

    def reward(completions, role, **_):
        seen.append((role[0], vowels(completions)))
        return seen[-1][1]

    trainer = trainer_of(tmp_path, rewards=reward)
    batch = rollout(trainer)
    assert [role for role, _ in seen] == ["pioneer", "observer"]
    total = torch.tensor(seen[0][1]) + torch.tensor(seen[1][1])
    for name in trainer.agents.names:
        torch.testing.assert_close(batch[f"{name}/rewards"], total)
        groups = total.view(-1, 4)
        expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(batch[f"{name}/advantages"], expected.view(-1), rtol=1e-4, atol=1e-4)
    seen.clear()
    trainer.args.credit = "own"
    batch = rollout(trainer)
    torch.testing.assert_close(batch["agent-2/rewards"], torch.tensor(seen[1][1]))
    torch.testing.assert_close(batch["agent-1/rewards"], total)


def test_equal_policies_have_no_kl(tmp_path):
    """Agents start as duplicates of each other and of the base model, with or without dropout."""
    trainer = trainer_of(tmp_path, max_steps=1, peft_config=lora(lora_dropout=0.5), steps_per_generation=1)
    found = adapters_of(trainer)
    assert_same(found["agent-1"], found["agent-2"])
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["agent/agent-1/kl"] == logs["agent/agent-2/kl"] == logs["kl"] == 0


def test_an_absolute_last_learning_rate_is_of_the_agents_rates(tmp_path):
    """Schedules relate it to the optimizer's default rate, which must be the rate of an agent."""
    trainer = trainer_of(
        tmp_path, agent_learning_rates=[1e-3, 5e-4], learning_rate=1e-6, lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-4}, max_steps=4,
    )  # fmt: skip
    trainer.train()
    last = {group["agent"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert last == pytest.approx({"agent-1": 1e-4, "agent-2": 5e-5})


@pytest.mark.parametrize("resting", [0, 1])
def test_an_agent_without_a_learning_rate_stays(tmp_path, resting):
    rates = [1e-2, 1e-2]
    rates[resting] = 0.0
    trainer = trainer_of(tmp_path, agent_learning_rates=rates, role_exchange_steps=1)
    before, frozen = adapters_of(trainer), base_of(trainer)
    trainer.train()
    after = adapters_of(trainer)
    names = trainer.agents.names
    assert_same(after[names[resting]], before[names[resting]])
    moving = names[1 - resting]
    assert any(not torch.equal(after[moving][key], value) for key, value in before[moving].items())
    assert_same(base_of(trainer), frozen)


def test_exchanging_the_agents_exchanges_what_is_learned(tmp_path):
    """Only the role makes a pioneer: with exchanged roles, each agent learns what the other learned."""
    one = trainer_of(tmp_path / "one", role_exchange_steps=0)
    one.train()
    other = trainer_of(tmp_path / "other", role_exchange_steps=0)
    other.order = lambda step=None: ["agent-2", "agent-1"]
    other.train()
    first, second = adapters_of(one), adapters_of(other)
    assert_same(first["agent-1"], second["agent-2"])
    assert_same(first["agent-2"], second["agent-1"])
    assert any(not torch.equal(first["agent-1"][key], value) for key, value in first["agent-2"].items())


def test_a_chain_of_three(tmp_path):
    """Each agent reads all answers before its own, and all learn."""
    calls = []

    def reward(completions, role, agent, previous_completions, prompts, **_):
        calls.append((role[0], agent[0], list(zip(*previous_completions, strict=True)), completions, prompts))
        return vowels(completions)

    trainer = trainer_of(tmp_path, num_agents=3, role_exchange_steps=1, rewards=reward, max_steps=5)
    before = adapters_of(trainer)
    trainer.train()
    assert [call[:2] for call in calls] == [
        ("pioneer", "agent-1"), ("observer-1", "agent-2"), ("observer-2", "agent-3"),
        ("pioneer", "agent-3"), ("observer-1", "agent-1"), ("observer-2", "agent-2"),
    ]  # fmt: skip
    for start in (0, 3):
        texts = [call[3] for call in calls[start : start + 3]]
        assert [call[2] for call in calls[start : start + 3]] == [[], [tuple(texts[0])], [*map(tuple, texts[:2])]]
        assert calls[start][4] == calls[start + 1][4] == calls[start + 2][4]
    after = adapters_of(trainer)
    for name in trainer.agents.names:
        assert any(not torch.equal(after[name][key], value) for key, value in before[name].items())


def test_a_constant_of_earlier_agents_is_noise_and_nothing_else(tmp_path):
    """A shift of all completions by the pioneer's mean changes nothing; `own` leaves out its variance."""
    trainer = trainer_of(tmp_path, credit="own")
    with in_training(trainer):
        batch = rollout(trainer)
        trainer.compute_loss(trainer.model, batch).backward()
        own = gradients_of(trainer, "agent-2")
        trainer.model.zero_grad()
        mean = batch["agent-1/rewards"].view(-1, 4).mean(1).repeat_interleave(4)
        rewards = (batch["agent-2/rewards"] + mean).view(-1, 4)
        shifted = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        trainer.compute_loss(trainer.model, {**batch, "agent-2/advantages": shifted.view(-1)}).backward()
        for one, other in zip(gradients_of(trainer, "agent-2"), own, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_longest_texts_come_first_in_a_step(tmp_path, monkeypatch):
    """Their activations are the largest, so that no other agent's gradients should exist yet."""
    asked = []
    original = CoryTrainer.agent_loss

    def watched(self, agent, model, inputs, num_items_in_batch):
        asked.append((agent, inputs["prompt_ids"].shape[1]))
        return original(self, agent, model, inputs, num_items_in_batch)

    monkeypatch.setattr(CoryTrainer, "agent_loss", watched)
    trainer_of(tmp_path, max_steps=2, role_exchange_steps=1, steps_per_generation=1, num_iterations=1).train()
    (first, second) = asked[:2], asked[2:4]
    assert [agent for agent, _ in first] == ["agent-2", "agent-1"]  # the observer, whose prompts have answers
    assert [agent for agent, _ in second] == ["agent-1", "agent-2"]
    assert all(longer > shorter for (_, longer), (_, shorter) in (first, second))
