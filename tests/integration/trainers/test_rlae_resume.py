"""A stopped and resumed run is bit-exactly an uninterrupted one."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers.rlae.rollouts import concatenate
from tests.support.rlae import assert_same, ensemble_of, parameters_of, trainer_of
from tests.support.stopping import StopAt
from tests.support.tiers import slow

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 10, "logging_steps": 3, "lr_scheduler_type": "cosine"}


def end_of(trainer):
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    counted = trainer._num_tokens, trainer.value_scale
    return parameters_of(trainer.model), trainer.optimizer.state_dict()["state"], logs, counted


@pytest.fixture(scope="module", params=["ppo", "mixture"])
def alone(request, tmp_path_factory):
    trainer = trainer_of(tmp_path_factory.mktemp("alone"), request.param, **SAVES)
    trainer.train()
    return request.param, end_of(trainer)


@pytest.mark.parametrize("stop", [6, *slow(1, 3, 8)])
def test_resumed_runs_end_alike(alone, tmp_path, stop):
    """A rollout serves 4 updates: stops in the first pass, in the second, in the next rollout, and at its end."""
    objective, (parameters, moments, logs, counted) = alone
    first = trainer_of(tmp_path, objective, callbacks=[StopAt(stop)], **SAVES)
    first.train()
    assert first.state.global_step == stop
    second = trainer_of(tmp_path, objective, **SAVES)
    calls = []
    rewards = second.reward_calls
    second._calculate_rewards = lambda *args: calls.append(1) or type(second)._calculate_rewards(second, *args)
    second.train(resume_from_checkpoint=True)
    assert second.reward_calls is rewards
    assert len(calls) == 3 - -(-stop // 4)
    found = end_of(second)
    assert_same(found[0], parameters)
    for key, entry in moments.items():
        assert all(torch.equal(found[1][key][name], value) for name, value in entry.items())
    assert found[2] == logs
    assert found[3] == counted
    assert (counted[1].count > 0) == (objective == "ppo")


@pytest.mark.slow
def test_across_the_border_of_an_epoch(tmp_path):
    """6 prompts, 2 per rollout, one update per pass: an epoch is 6 updates, 3 rollouts."""
    options = {**SAVES, "max_steps": 14, "per_device_train_batch_size": 8, "steps_per_generation": 1}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    assert whole.state.epoch > 2
    for stop in (6, 7):
        trainer_of(tmp_path / str(stop), callbacks=[StopAt(stop)], **options).train()
        resumed = trainer_of(tmp_path / str(stop), **options)
        resumed.train(resume_from_checkpoint=True)
        assert_same(parameters_of(resumed.model), parameters_of(whole.model))


def test_a_stop_for_kl_is_remembered(tmp_path):
    options = {**SAVES, "target_kl": 1e-6, "max_steps": 8, "learning_rate": 0.05}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    trainer_of(tmp_path / "part", callbacks=[StopAt(2)], **options).train()
    resumed = trainer_of(tmp_path / "part", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same(parameters_of(resumed.model), parameters_of(whole.model))


@pytest.mark.parametrize("grain", ["token", "byte"])
def test_with_text_draws_and_chats_in_the_buffer(tmp_path, grain):
    def made(folder, callbacks=None):
        ensemble = ensemble_of("mixture", "different", "both", draw="token", grain=grain)
        return trainer_of(folder, "mixture", ensemble=ensemble, callbacks=callbacks, **{**SAVES, "max_steps": 5})

    whole = made(tmp_path / "whole")
    whole.train()
    made(tmp_path / "part", [StopAt(3)]).train()
    resumed = made(tmp_path / "part")
    resumed.train(resume_from_checkpoint=True)
    assert_same(parameters_of(resumed.model), parameters_of(whole.model))


def test_a_rollout_of_all_processes_in_each_is_refused(tmp_path):
    """Earlier versions saved it; this one would take parts of it twice."""
    trainer = trainer_of(tmp_path, **{**SAVES, "max_steps": 3})
    trainer.train()
    state, kept = trainer.extra_state(), trainer.buffer.rollouts
    trainer.load_extra_state(state)
    state["buffer"]["rollouts"] = concatenate([kept, kept]).state()
    with pytest.raises(CheckpointError, match="has 16 completions in each process, and this run has 8"):
        trainer.load_extra_state(state)
