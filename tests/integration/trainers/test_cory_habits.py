"""Habits of users of TRL's trainers."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import RichProgressCallback, TrlParser
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from hf_rlae.trainers import CoryArguments, CoryConfig, CoryMixin, CoryRLOOTrainer, CoryTrainer
from tests.support.cory import OPTIONS, adapters_of, base, chats, lora, rollout, trainer_of
from tests.support.rlae import assert_same, data, vowels
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe


@dataclass
class CoryGMPOConfig(CoryArguments, GMPOConfig):
    """The configuration of the next class."""


class CoryGMPOTrainer(CoryMixin, GMPOTrainer):
    config_class = CoryGMPOConfig


def assert_learned(trainer):
    before = adapters_of(trainer)
    trainer.train()
    after = adapters_of(trainer)
    for name, parameters in before.items():
        assert any(not torch.equal(after[name][key], value) for key, value in parameters.items()), name
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_columns_of_a_rule_are_no_unused_ones(tmp_path):
    """`remove_unused_columns=True` keeps what reward functions declare or name, and the rule finds its ground truth."""
    train = data(answer=["#### 3"] * 6, other=["x"] * 6)
    trainer = trainer_of(tmp_path, rewards=["number", vowels], train=train, max_steps=1, remove_unused_columns=True)
    (batch,) = [batch for batch, _ in zip(trainer.get_train_dataloader(), range(1), strict=False)]
    assert "answer" in batch[0]
    assert "other" not in batch[0]
    trainer.train()
    assert "rewards/number_reward/mean" in trainer.state.log_history[0]


def test_another_trainer_of_trl_in_ten_lines(tmp_path):
    trainer = trainer_of(tmp_path, CoryGMPOTrainer, role_exchange_steps=2)
    assert trainer.args.epsilon == 0.4
    logs = assert_learned(trainer)
    assert all({"agent/agent-1/kl", "agent/agent-2/entropy"} <= entry.keys() for entry in logs)


@pytest.mark.parametrize("trainer_class", [CoryTrainer, *slow(CoryRLOOTrainer, CoryGMPOTrainer)])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "num_iterations": 1},
        {"gradient_checkpointing": False, "beta": 0.0},
        {"steps_per_generation": 1, "num_iterations": 1, "mask_truncated_completions": True},
    ],
    ids=["accumulated", "without a reference", "truncated texts left out"],
)
def test_ways_to_train(tmp_path, trainer_class, options):
    trainer = trainer_of(tmp_path, trainer_class, **{**OPTIONS, "max_steps": 2, **options})
    if options.get("mask_truncated_completions"):
        trainer.train()
    else:
        assert_learned(trainer)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo"}, {"importance_sampling_level": "sequence"},
        *slow(
            {"loss_type": "grpo"}, {"loss_type": "dr_grpo"}, {"scale_rewards": "batch"},
            {"top_entropy_quantile": 0.5}, {"entropy_coef": 0.01},
        ),
    ],
    ids=str,
)  # fmt: skip
def test_losses_of_grpo(tmp_path, options):
    assert_learned(trainer_of(tmp_path, **{**OPTIONS, "max_steps": 2, **options}))


def test_conversations(tmp_path):
    seen = []

    def reward(completions, previous_completions, prompts, role, **_):
        seen.append((role[0], completions, previous_completions, prompts))
        return vowels(completions)

    trainer = trainer_of(tmp_path, rewards=reward, train=chats(), given=base(chat=True), max_steps=1)
    assert_learned(trainer)
    (_, first, _, asked), (role, _, shown, again) = seen
    assert role == "observer"
    assert shown == [[completion] for completion in first]
    assert asked == again
    assert first[0][0]["role"] == "assistant"


def test_many_kinds_of_rewards(tmp_path):
    """A function, an async one, a model, and one that judges only some completions; weighted."""
    roles = []

    async def later(completions, role, **_):
        await asyncio.sleep(0.01)
        roles.append(role[0])
        return [2.0 * value for value in vowels(completions)]

    numbers = []

    def sometimes(completions, number, **_):
        numbers.extend(number)
        return [1.0 if value % 2 else None for value in number]

    config = LlamaConfig(
        vocab_size=len(byte_level_bpe()), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.config._name_or_path = "judge"
    judged = []

    def note(_, args, kwargs):
        judged.extend(byte_level_bpe().batch_decode(kwargs["input_ids"], skip_special_tokens=True))

    model.register_forward_pre_hook(note, with_kwargs=True)
    given = base()
    trainer = CoryTrainer(
        given[0],
        [vowels, later, model, sometimes],
        args=CoryConfig(str(tmp_path), **{**OPTIONS, "max_steps": 1}, reward_weights=[1.0, 0.5, 0.1, 2.0]),
        train_dataset=data(),
        processing_class=given[1],
        reward_processing_classes=[None, None, given[1], None],
        peft_config=lora(),
    )
    [logs] = assert_learned(trainer)
    assert roles == ["pioneer", "observer"]
    # the model judges the original prompt and the completion, not the observer's prompt
    assert len(judged) == 16
    assert all(text.startswith(tuple(data()["prompt"])) for text in judged)
    assert logs["rewards/later/mean"] == pytest.approx(2 * logs["rewards/vowels/mean"], rel=1e-5)
    weights = {"vowels": 1.0, "later": 0.5, "judge": 0.1}
    total = sum(weight * logs[f"rewards/{name}/mean"] for name, weight in weights.items())
    odd = sum(number % 2 for number in numbers) / len(numbers)
    assert logs["reward"] == pytest.approx(total + 2.0 * 2 * odd, rel=1e-4)  # weight 2, a reward of both agents


def test_unjudged_completions_are_not_learned_from(tmp_path):
    trainer = trainer_of(tmp_path, rewards=lambda completions, role, **_: [
        None if at < 2 and role[0] == "observer" else value for at, value in enumerate(vowels(completions))
    ])  # fmt: skip
    batch = rollout(trainer)
    for name in trainer.agents.names:
        assert batch[f"{name}/rewards"].isnan().tolist() == [True, True] + [False] * 6
        assert batch[f"{name}/advantages"][:2].tolist() == [0.0, 0.0]
        assert batch[f"{name}/advantages"][2:].abs().max() > 0


def test_a_registered_reward(tmp_path):
    trainer = trainer_of(tmp_path, rewards="gsm8k", train=data(6, answer=["1"] * 6), max_steps=1)
    trainer.train()
    assert "rewards/gsm8k_reward/mean" in trainer.state.log_history[0]


def test_evaluations(tmp_path):
    trainer = trainer_of(
        tmp_path, eval_dataset={"one": data(2), "two": data(3)}, eval_strategy="steps", eval_steps=2, max_steps=2,
        per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    for name in ("one", "two"):
        [entry] = [entry for entry in trainer.state.log_history if f"eval_{name}_loss" in entry]
        roles = entry[f"eval_{name}_role/pioneer/reward"] + entry[f"eval_{name}_role/observer/reward"]
        assert entry[f"eval_{name}_reward"] == pytest.approx(roles, abs=1e-6)
        assert not any(key.startswith("eval_") and not key.startswith(f"eval_{name}_") for key in entry)
    metrics = trainer.evaluate(data(4))
    assert metrics["eval_agent/agent-1/kl"] != 0
    assert math.isfinite(metrics["eval_loss"])


@pytest.mark.slow
def test_evaluations_leave_training_as_it_is(tmp_path):
    """Including those inside a rollout in use, and across an exchange."""
    ends = []
    for folder in ("without", "with"):
        evaluated = {"eval_dataset": {"one": data(2), "two": data(3)}, "eval_strategy": "steps", "eval_steps": 1}
        options = {"max_steps": 5, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
        trainer = trainer_of(
            tmp_path / folder, role_exchange_steps=2, gradient_checkpointing=False, per_device_eval_batch_size=4,
            **options, **(evaluated if folder == "with" else {}),
        )  # fmt: skip
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        logs = [{key: value for key, value in entry.items() if "time" not in key} for entry in logs]
        ends.append((adapters_of(trainer), logs))
    for name, parameters in ends[0][0].items():
        assert_same(ends[1][0][name], parameters)
    assert ends[0][1] == ends[1][1]


@pytest.mark.slow
def test_the_best_of_one_of_several_datasets(tmp_path):
    """TRL gives the rewards of all datasets the same name, so the last one would decide."""

    def reward(completions, number, **_):
        if trainer.model.training:
            return vowels(completions)
        easy, step = number[0] == 0, trainer.state.global_step
        return [float(step if easy else -step)] * len(completions)

    trainer = trainer_of(
        tmp_path, rewards=reward, eval_dataset={"easy": data(1), "hard": data(6).select([5])}, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1, max_steps=2, per_device_eval_batch_size=4,
        load_best_model_at_end=True, metric_for_best_model="easy_reward",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.state.best_metric == 4.0  # of both agents


def test_one_agent_is_evaluated_alone(tmp_path):
    calls = []

    def reward(completions, role, agent, previous_completions, **_):
        calls.append((role[0], agent[0], previous_completions[0]))
        return vowels(completions)

    trainer = trainer_of(tmp_path, rewards=reward, max_steps=3, eval_dataset=data(2), per_device_eval_batch_size=8)
    trainer.train()
    for agent in ("agent-2", "agent-1"):
        calls.clear()
        with trainer.alone(agent):
            assert trainer.agents.active == agent
            assert trainer.roles() == {agent: "pioneer"}
            metrics = trainer.evaluate()
            assert trainer.agents.active == agent
        assert calls == [("pioneer", agent, [])]
        assert metrics["eval_reward"] == metrics["eval_role/pioneer/reward"] == metrics[f"eval_agent/{agent}/reward"]
        assert not any("observer" in name for name in metrics)
    assert trainer.agents.active == "agent-1"
    assert list(trainer.roles()) == trainer.agents.names


def test_progress_and_tables(tmp_path, capsys):
    trainer = trainer_of(
        tmp_path, callbacks=[RichProgressCallback()], log_completions=True, num_completions_to_print=2, max_steps=2,
        eval_dataset=data(2), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8, disable_tqdm=False,
    )  # fmt: skip
    trainer.train()
    shown = capsys.readouterr().out
    assert "observer" in shown or "pioneer" in shown
    table = pd.read_parquet(tmp_path / "completions" / "completions_00002.parquet")
    assert set(table["agent"]) == {"agent-1", "agent-2"}


def test_a_column_that_appears_late(tmp_path):
    """TRL's own table breaks if a column is not logged every time."""

    def reward(completions, role, log_extra, trainer_state, **_):
        if trainer_state.global_step == 1 and role[0] == "observer":
            log_extra("late", ["x"] * len(completions))
        return vowels(completions)

    trainer = trainer_of(
        tmp_path, rewards=reward, log_completions=True, num_completions_to_print=0, max_steps=3,
        steps_per_generation=1, num_iterations=1, eval_dataset=data(2), eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=4, role_exchange_steps=0,
    )  # fmt: skip
    trainer.train()
    tables = [pd.read_parquet(path) for path in sorted((tmp_path / "completions").glob("*.parquet"))]
    assert len(tables) == 3
    # the evaluation replaces the table of its step
    for table, is_late in zip(tables, (True, False, False), strict=True):
        assert ((table["late"] == "x") == ((table["role"] == "observer") & is_late)).all()


YAML = """
output_dir: {folder}
num_agents: 3
agent_names: [ada, bob, cy]
role_exchange_steps: 2
credit: own
knowledge_transfer: false
observer_template: "{{answers}} 100% {{prompt}}"
agent_learning_rates: [0.1, 0.2, 0.3]
reward_timeout: 3.5
use_cpu: true
report_to: none
"""


def test_yaml(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text(YAML.format(folder=tmp_path / "out"))
    [args] = TrlParser(CoryConfig).parse_args_and_config(["--config", str(file), "--num_generations", "4"])
    assert args.names == ["ada", "bob", "cy"]
    assert args.learning_rates == [0.1, 0.2, 0.3]
    assert (args.role_exchange_steps, args.credit, args.knowledge_transfer) == (2, "own", False)
    assert args.observer_template == "{answers} 100% {prompt}"
    assert args.num_generations == 4
    assert args.reward_timeout == 3.5
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as end:
        TrlParser(CoryConfig).parse_args_and_config()
    assert end.value.code == 0


@pytest.mark.slow
def test_a_real_model(tmp_path, shared):
    """Loaded from a folder; both agents learn to write more vowels than the base model."""
    trainer = CoryTrainer(
        str(shared("models", "stories260K")),
        vowels,
        args=CoryConfig(str(tmp_path), **{**OPTIONS, "max_steps": 9, "per_device_train_batch_size": 16,
                                          "steps_per_generation": 1, "num_iterations": 1, "learning_rate": 2e-2}),
        train_dataset=data(),
        peft_config=lora(),
    )  # fmt: skip
    logs = assert_learned(trainer)
    for name in trainer.agents.names:
        rewards = [entry[f"agent/{name}/reward"] for entry in logs]
        assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05
