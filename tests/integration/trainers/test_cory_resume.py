"""A stopped and resumed run is bit-exactly an uninterrupted one."""

from __future__ import annotations

import json
import os
from collections import deque

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers import CoryRLOOTrainer, CoryTrainer
from hf_rlae.trainers.cory.logs import logs_as_json
from tests.support.cory import adapters_of, chats, trainer_of
from tests.support.cory import base as base_pair
from tests.support.rlae import assert_same, data, vowels
from tests.support.stopping import StopAt
from tests.support.tiers import slow

SAVES = {
    "save_strategy": "steps", "max_steps": 9, "gradient_checkpointing": False, "logging_steps": 3,
    "lr_scheduler_type": "cosine",
    "role_exchange_steps": 3, "agent_learning_rates": [1e-2, 5e-3], "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
}  # fmt: skip
"""A rollout serves 4 updates; roles change after 3 and 6, with effect in the rollouts of steps 4 and 8."""


def end_of(trainer):
    logs = [
        {key: value for key, value in entry.items() if "time" not in key}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return adapters_of(trainer), trainer.optimizer.state_dict()["state"], logs


def assert_same_end(found, expected):
    for name, parameters in expected[0].items():
        assert_same(found[0][name], parameters)
    for key, entry in expected[1].items():
        assert all(torch.equal(found[1][key][name], value) for name, value in entry.items())
    assert found[2] == expected[2]


CASES = [(CoryTrainer, 3), *slow(*((CoryTrainer, stop) for stop in (1, 4, 6)), (CoryRLOOTrainer, 3))]
"""In the first rollout, at an exchange that waits, between two rollouts, at an exchange in the second."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    ends = {}
    for trainer_class in (CoryTrainer, CoryRLOOTrainer):
        trainer = trainer_of(tmp_path_factory.mktemp("alone"), trainer_class, **{**SAVES, "save_strategy": "no"})
        trainer.train()
        ends[trainer_class] = end_of(trainer)
    return ends


@pytest.mark.parametrize(("trainer_class", "stop"), CASES)
def test_resumed_runs_end_alike(alone, tmp_path, trainer_class, stop):
    expected = alone[trainer_class]
    first = trainer_of(tmp_path, trainer_class, callbacks=[StopAt(stop)], save_steps=stop, **SAVES)
    first.train()
    assert first.state.global_step == stop
    calls = []

    def reward(completions, **_):
        calls.append(1)
        return vowels(completions)

    reward.__name__ = "vowels"
    second = trainer_of(tmp_path, trainer_class, rewards=reward, save_steps=50, **SAVES)
    torch.manual_seed(99)
    second.train(resume_from_checkpoint=True)
    assert len(calls) == 2 * (3 - -(-stop // 4))  # two agents; three rollouts in all
    assert_same_end(end_of(second), expected)


@pytest.mark.slow
def test_across_the_border_of_an_epoch(tmp_path):
    """6 prompts, 2 per rollout, one update each: an epoch is 3 updates."""
    options = {**SAVES, "max_steps": 7, "steps_per_generation": 2, "num_iterations": 1, "role_exchange_steps": 2}
    whole = trainer_of(tmp_path / "whole", **{**options, "save_strategy": "no"})
    whole.train()
    assert whole.state.epoch > 2
    for stop in (3, 4):
        trainer_of(tmp_path / str(stop), callbacks=[StopAt(stop)], save_steps=stop, **options).train()
        resumed = trainer_of(tmp_path / str(stop), **options, save_steps=50)
        resumed.train(resume_from_checkpoint=True)
        assert_same_end(end_of(resumed), end_of(whole))


@pytest.mark.slow
def test_with_conversations_in_the_buffer(tmp_path):
    def reward(completions, previous_completions, **_):
        assert all(text[0]["role"] == "assistant" for texts in previous_completions for text in texts)
        return vowels([text[0]["content"] for text in completions])

    def made(folder, callbacks=None):
        options = {**SAVES, "max_steps": 5, "save_steps": 3, "rewards": reward}
        return trainer_of(folder, train=chats(), given=base_pair(chat=True), callbacks=callbacks, **options)

    whole = made(tmp_path / "whole")
    whole.train()
    made(tmp_path / "part", [StopAt(3)]).train()
    resumed = made(tmp_path / "part")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(end_of(resumed), end_of(whole))


def test_logs_are_saved_as_what_can_be_saved():
    odd = object()
    logs = {"prompt": deque(["a", [{"role": "user", "content": "b"}]]), "extra": {"c": deque([odd, 1.5, None])}}
    found = json.loads(logs_as_json(logs))
    assert found == {"prompt": ["a", [{"role": "user", "content": "b"}]], "extra": {"c": [str(odd), 1.5, None]}}


@pytest.mark.parametrize("logs", [None, {"prompt": ["a"], "extra": {"score": [0.5]}}, "{}"])
def test_tables_of_earlier_versions(tmp_path, logs):
    """They had no JSON, and the states had names of agents and sizes of batches, which the manifest has now."""
    trainer = trainer_of(tmp_path)
    former = {"agents": ["agent-1", "agent-2"], "batches": {"num_iterations": 2}}
    trainer.load_extra_state({**trainer.extra_state(), **former, "logs": logs})
    assert list(trainer._logs["prompt"]) == (["a"] if isinstance(logs, dict) else [])


def test_a_torn_checkpoint_is_left_out(tmp_path):
    """Even if the second agent's file is the incomplete one."""
    options = {**SAVES, "max_steps": 3, "save_steps": 1}
    trainer_of(tmp_path, callbacks=[StopAt(2)], **options).train()
    torn = tmp_path / "checkpoint-2" / "agent-2" / "adapter_model.safetensors"
    os.truncate(torn, torn.stat().st_size // 2)
    again = trainer_of(tmp_path, **options)
    with pytest.raises(CheckpointError, match="agent-2"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = trainer_of(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer_of(tmp_path / "whole", **{**options, "save_strategy": "no"})
    whole.train()
    assert_same_end(end_of(resumed), end_of(whole))


@pytest.mark.slow
def test_a_template_that_cannot_be_pickled(tmp_path):
    """Nor can it be written as JSON for trackers."""
    template = lambda prompt, answers: f"{answers[0]} {prompt}"  # noqa: E731
    options = {**SAVES, "max_steps": 2, "save_steps": 1, "observer_template": template}
    trainer = trainer_of(tmp_path, **options)
    trainer.train()
    assert trainer.args.observer_template is template
    assert "lambda" in json.loads(trainer.args.to_json_string())["observer_template"]
    again = trainer_of(tmp_path, **{**options, "max_steps": 3})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


@pytest.mark.slow
def test_a_second_training_begins_with_a_new_rollout(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[StopAt(3)], **{**SAVES, "save_strategy": "no"})
    trainer.train()
    assert trainer._step % 4
    trainer.train()
    assert trainer._step == 6


def test_the_best_agents_are_loaded_at_the_end(tmp_path):
    """Each into its own adapter; transformers would load the first one into the active adapter."""
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept[state.global_step] = adapters_of(trainer)

    calls = []

    def reward(completions, **_):
        if trainer.model.training:
            return vowels(completions)
        calls.append(1)
        return [1.0 if trainer.state.global_step == 2 else 0.0] * len(completions)

    trainer = trainer_of(
        tmp_path, rewards=reward, callbacks=[Keep()], eval_dataset=data(2), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, max_steps=4, per_device_eval_batch_size=8,
        role_exchange_steps=1,
    )  # fmt: skip
    trainer.train()
    assert calls
    assert trainer.args.metric_for_best_model == "reward"
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = adapters_of(trainer)
    for name in trainer.agents.names:
        assert_same(best[name], kept[2][name])
        assert any(not torch.equal(kept[4][name][key], value) for key, value in best[name].items())
    assert any(not torch.equal(best["agent-1"][key], value) for key, value in best["agent-2"].items())


@pytest.mark.slow
def test_a_table_of_texts_survives(tmp_path):
    """A run resumed within a rollout shows the completions of that rollout, like an uninterrupted one."""
    options = {**SAVES, "max_steps": 3, "logging_steps": 1, "log_completions": True, "num_completions_to_print": 0}
    options["save_steps"] = 2
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    trainer_of(tmp_path / "part", callbacks=[StopAt(2)], **options).train()
    trainer_of(tmp_path / "part", **options).train(resume_from_checkpoint=True)
    tables = [
        pd.read_parquet(tmp_path / name / "completions" / "completions_00003.parquet") for name in ("whole", "part")
    ]
    assert len(tables[0]) == 32
    pd.testing.assert_frame_equal(*tables)
