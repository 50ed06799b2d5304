"""Silent errors of several adapters in one trainer, with a test for each."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from hf_rlae.trainers import CoryRLOOTrainer, CoryTrainer
from tests.support.cory import (
    OPTIONS,
    adapters_of,
    base_of,
    gradients_of,
    in_training,
    lora,
    rollout,
    trainer_of,
)
from tests.support.rlae import vowels


def gradients(folder, checkpointing, joint=False, agents=("agent-1", "agent-2"), trainer_class=CoryTrainer):
    """All agents' gradients for one fixed rollout, with different adapters."""
    trainer = trainer_of(folder, trainer_class, gradient_checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in trainer.agents.names:
            for parameter in trainer.agents.parameters(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    with in_training(trainer):
        batch = rollout(trainer)
        assert trainer.model.is_activation_checkpointing == checkpointing
        if joint:
            losses = []
            for name in trainer.agents.names:
                trainer.agents.activate(name)
                own = {k.removeprefix(f"{name}/"): v for k, v in batch.items() if k.startswith(f"{name}/")}
                losses.append(trainer.agent_loss(name, trainer.model, own, None))
            sum(losses).backward()
        else:
            kept = {key: value for key, value in batch.items() if key.split("/")[0] in agents}
            trainer._backward(trainer.compute_loss(trainer.model, kept))
        return {name: gradients_of(trainer, name) for name in trainer.agents.names}


def distance(one, other):
    return (
        sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))
        / sum(float(b.square().sum()) for b in other)
    ) ** 0.5


@pytest.mark.parametrize("trainer_class", [CoryTrainer, CoryRLOOTrainer])
def test_gradients_are_the_same_with_gradient_checkpointing(tmp_path, trainer_class):
    """One joint loss would be wrong."""
    plain = gradients(tmp_path, False, trainer_class=trainer_class)
    recomputed = gradients(tmp_path, True, trainer_class=trainer_class)
    for name, expected in plain.items():
        assert all(torch.equal(one, other) for one, other in zip(recomputed[name], expected, strict=True))
    wrong = gradients(tmp_path, True, joint=True, trainer_class=trainer_class)
    assert distance(wrong["agent-1"], plain["agent-1"]) > 0.1


def test_each_agent_has_the_gradients_of_its_own_loss(tmp_path):
    both = gradients(tmp_path, True)
    for name in both:
        alone = gradients(tmp_path, True, agents=(name,))
        assert all(torch.equal(one, other) for one, other in zip(both[name], alone[name], strict=True))
        assert max(float(gradient.abs().max()) for gradient in both[name]) > 0
        other = next(key for key in both if key != name)
        assert all(not gradient.any() for gradient in alone[other])


@pytest.mark.parametrize("reentrant", [False, True])
def test_both_agents_train_and_the_base_does_not(tmp_path, reentrant):
    """With either kind of checkpointing, through a whole training."""
    trainer = trainer_of(
        tmp_path, gradient_checkpointing_kwargs={"use_reentrant": reentrant}, gradient_accumulation_steps=2
    )
    before, frozen = adapters_of(trainer), base_of(trainer)
    trainer.train()
    after = adapters_of(trainer)
    for name in trainer.agents.names:
        moved = [key for key, value in before[name].items() if not torch.equal(after[name][key], value)]
        assert len(moved) == len(before[name])
    assert all(torch.equal(value, frozen[key]) for key, value in base_of(trainer).items())


def test_every_agent_keeps_its_gradients_whichever_is_active(tmp_path):
    trainer = trainer_of(tmp_path)

    def trainable():
        return {
            name: all(parameter.requires_grad for parameter in trainer.agents.parameters(name))
            for name in trainer.agents.names
        }

    everyone = dict.fromkeys(trainer.agents.names, True)
    assert trainable() == everyone
    rollout(trainer)  # the reference is the base model: PEFT freezes disabled adapters
    for name in trainer.agents.names:
        trainer.agents.activate(name)
        assert trainable() == everyone
        assert trainer.agents.active == name
    groups = trainer.create_optimizer().param_groups
    assert {group["agent"] for group in groups} == set(everyone)
    for name in everyone:
        own = {id(parameter) for parameter in trainer.agents.parameters(name)}
        assert own == {id(p) for group in groups if group["agent"] == name for p in group["params"]}


def test_there_is_no_adapter_besides_the_agents(tmp_path):
    """With `beta`, TRL adds a frozen `ref` to a model that has adapters already."""
    trainer = trainer_of(tmp_path, beta=0.1, num_agents=3)
    assert list(trainer.model.peft_config) == ["default", "agent-2", "agent-3"]
    configs = list(trainer.model.peft_config.values())
    assert len({id(config) for config in configs}) == 3


def test_dropout_is_off_in_every_adapter(tmp_path):
    for disabled in (True, False):
        trainer = trainer_of(tmp_path, peft_config=lora(lora_dropout=0.5), disable_dropout=disabled)
        rates = {
            name: module.p
            for name, module in trainer.model.named_modules()
            if isinstance(module, torch.nn.Dropout) and "lora_dropout" in name
        }
        assert {name.rsplit(".", 1)[-1] for name in rates} == {"default", "agent-2"}
        assert set(rates.values()) == ({0.0} if disabled else {0.5})


def test_a_large_gradient_of_one_agent_does_not_shorten_the_step_of_the_other(tmp_path):
    trainer = trainer_of(tmp_path, max_grad_norm=1.0)
    for scale, name in zip((100.0, 0.01), trainer.agents.names, strict=True):
        for parameter in trainer.agents.parameters(name):
            parameter.grad = torch.full_like(parameter, scale)
    before = gradients_of(trainer, "agent-2")
    norm = trainer._clip_grad_norm(trainer.model)
    norms = [torch.cat([g.flatten() for g in gradients_of(trainer, name)]).norm() for name in trainer.agents.names]
    assert norms[0] == pytest.approx(1.0, rel=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(gradients_of(trainer, "agent-2"), before, strict=True))
    logged = [trainer._metrics["train"][f"agent/{name}/grad_norm"][0] for name in trainer.agents.names]
    assert norm == pytest.approx((logged[0] ** 2 + logged[1] ** 2) ** 0.5)
    assert logged[0] > 100
    assert logged[1] < 1


def test_the_same_agent_is_active_after_a_step_as_before(tmp_path):
    trainer = trainer_of(tmp_path, eval_dataset=None)
    trainer.train()
    assert trainer.agents.active == "agent-1"


@pytest.mark.parametrize("trainer_class", [CoryTrainer, CoryRLOOTrainer])
def test_metrics_belong_to_the_agent_that_they_name(tmp_path, trainer_class):
    """Across exchanges, although one agent's rollout runs inside the other's."""
    seen = []

    def reward(completions, role, agent, **_):
        values = [{"agent-1": 1.0, "agent-2": 3.0}[name] for name in agent]
        seen.append((role[0], agent[0]))
        return values

    trainer = trainer_of(
        tmp_path, trainer_class, rewards=reward, role_exchange_steps=2, steps_per_generation=1, num_iterations=1,
        max_steps=6, agent_learning_rates=[0.0, 1e-2], num_generations=2,
    )  # fmt: skip
    trainer.train()
    logs = trainer.state.log_history[:-1]
    assert seen == [
        (r, a) for step in range(6) for r, a in zip(("pioneer", "observer"), trainer.order(step), strict=True)
    ]
    for step, entry in enumerate(logs):
        pioneer = trainer.order(step)[0]
        assert entry["agent/agent-1/reward"] == 1.0
        assert entry["agent/agent-2/reward"] == 3.0
        assert entry["role/pioneer/reward"] == (1.0 if pioneer == "agent-1" else 3.0)
        assert entry["role/observer/reward"] == (3.0 if pioneer == "agent-1" else 1.0)
        assert entry["reward"] == entry["rewards/reward/mean"] == 4.0
        assert entry["kl"] == pytest.approx((entry["agent/agent-1/kl"] + entry["agent/agent-2/kl"]) / 2, abs=1e-7)
        assert entry["entropy"] == pytest.approx(
            (entry["agent/agent-1/entropy"] + entry["agent/agent-2/entropy"]) / 2, abs=1e-5
        )
    # with equal rewards only the KL has gradients
    assert all(entry["agent/agent-1/kl"] == 0 for entry in logs)


def test_the_kl_of_an_agent_that_rests_stays_zero(tmp_path):
    for trainer_class in (CoryTrainer, CoryRLOOTrainer):
        trainer = trainer_of(tmp_path, trainer_class, agent_learning_rates=[0.0, 0.05], max_steps=5)
        trainer.train()
        logs = trainer.state.log_history[:-1]
        assert {entry["agent/agent-1/kl"] for entry in logs if "agent/agent-1/kl" in entry} == {0.0}
        assert any(entry.get("agent/agent-2/kl") for entry in logs)


def test_tokens_are_counted_once(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.train()
    batch = trainer._buffered_inputs
    masks = [
        part[f"{name}/{kind}_mask"]
        for part in batch
        for name in trainer.agents.names
        for kind in ("prompt", "completion")
    ]
    assert trainer.state.log_history[0]["num_tokens"] == sum(int(mask.sum()) for mask in masks)


def test_the_table_of_texts_has_rows_of_one_piece(tmp_path):
    """Every agent's completions, each with its own reward and the columns of its own call."""

    def reward(completions, role, log_extra, log_metric, **_):
        log_extra("echo", list(completions))
        if role[0] == "observer":
            log_extra("seen by observers", [f"o {text}" for text in completions])
            log_metric("observed", 5.0)
        else:
            log_extra("seen by pioneers", [f"p {text}" for text in completions])
            log_metric("led", 2.0)
        return vowels(completions)

    trainer = trainer_of(
        tmp_path, rewards=reward, log_completions=True, credit="own", role_exchange_steps=2,
        steps_per_generation=1, num_iterations=1, max_steps=3, num_completions_to_print=0,
    )  # fmt: skip
    trainer.train()
    for step in (1, 2, 3):
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert len(table) == 2 * OPTIONS["per_device_train_batch_size"]
        assert sorted(set(table["role"])) == ["observer", "pioneer"]
        roles = dict(zip(table["agent"], table["role"], strict=True))
        assert roles == trainer.roles(step - 1)
        assert list(table["echo"]) == list(table["completion"])
        for _, row in table.iterrows():
            is_observer = row["role"] == "observer"
            text = row["completion"]
            own, others = ("observers", "pioneers") if is_observer else ("pioneers", "observers")
            assert row[f"seen by {own}"] == f"{own[0]} {text}"
            assert pd.isna(row[f"seen by {others}"])
            assert ("for reference" in row["prompt"]) == is_observer
            if is_observer:
                assert row["reward"] == pytest.approx(vowels([text])[0], abs=1e-6)
        logs = trainer.state.log_history[step - 1]
        assert (logs["observed"], logs["led"]) == (5.0, 2.0)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_rollout_that_serves_more_steps_than_an_exchange_takes_exchanges_roles(tmp_path, steps):
    """Two exchanges inside one rollout of four steps would cancel each other, and the pioneer would never change."""
    trainer = trainer_of(tmp_path, role_exchange_steps=steps)
    assert trainer.exchange_steps == 4
    assert [trainer.order(step)[0] for step in range(0, 17, 4)] == ["agent-1", "agent-2"] * 2 + ["agent-1"]
    assert trainer_of(tmp_path, role_exchange_steps=0).exchange_steps == 0


def test_roles_hold_for_a_whole_rollout(tmp_path):
    """A rollout serves four steps here; the exchange after three takes effect with the next one."""
    seen = []

    def reward(completions, agent, role, **_):
        seen.append((trainer.state.global_step, role[0], agent[0]))
        return vowels(completions)

    trainer = trainer_of(tmp_path, rewards=reward, role_exchange_steps=3, max_steps=9)
    trainer.train()
    assert seen == [
        (0, "pioneer", "agent-1"), (0, "observer", "agent-2"),
        (4, "pioneer", "agent-2"), (4, "observer", "agent-1"),
        (8, "pioneer", "agent-1"), (8, "observer", "agent-2"),
    ]  # fmt: skip
