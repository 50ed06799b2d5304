"""CORY trainers in several processes, and in processes that are killed."""

from __future__ import annotations

import signal

import pytest
import torch

from hf_rlae.trainers.durable.checkpoint_folders import missing_parts, whole_checkpoints
from tests.support.cory_processes import run
from tests.support.processes import finish, start, start_two
from tests.support.rlae import assert_same
from tests.support.tiers import slow

LONG = {
    "save_strategy": "steps", "save_steps": 3, "max_steps": 10, "role_exchange_steps": 2, "lr_scheduler_type": "cosine",
    "agent_learning_rates": [1e-2, 5e-3], "logging_steps": 2,
}  # fmt: skip
"""A rollout serves four updates: at 3 and 9 a save falls inside one; roles change in the middle of each."""


def assert_same_end(one, other):
    for agent, parameters in other["agents"].items():
        assert_same(one["agents"][agent], parameters)
    for key, entry in other["optimizer"].items():
        assert all(torch.equal(one["optimizer"][key][name], value) for name, value in entry.items())
    assert one["logs"] == other["logs"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert finish([start(run, str(folder / "out"), str(folder / "end.pt"), **LONG)]) == [0]
    return torch.load(folder / "end.pt")


@pytest.mark.parametrize("step", [2, 5, 8])
@pytest.mark.slow
def test_killed_and_resumed(alone, tmp_path, step):
    """Before the first save; inside a rollout and across an exchange; inside the next one."""
    folder = str(tmp_path / "out")
    assert finish([start(run, folder, kill=step, **LONG)]) == [-signal.SIGKILL]
    assert list(whole_checkpoints(folder)) == [saved for saved in (3, 6) if saved < step]
    assert finish([start(run, folder, str(tmp_path / "end.pt"), resume=True, **LONG)]) == [0]
    assert_same_end(torch.load(tmp_path / "end.pt"), alone)


@pytest.mark.slow
def test_sigterm(alone, tmp_path):
    folder = str(tmp_path / "out")
    assert finish([start(run, folder, sigterm=4, **{**LONG, "save_strategy": "no"})]) == [-signal.SIGTERM]
    assert list(whole_checkpoints(folder)) == [5]
    assert finish([start(run, folder, str(tmp_path / "end.pt"), resume=True, **LONG)]) == [0]
    assert_same_end(torch.load(tmp_path / "end.pt"), alone)


CASES = {
    "GRPO": {"trainer": "fixed grpo"},
    "GRPO, accumulated, dapo": {"trainer": "fixed grpo", "gradient_accumulation_steps": 2, "loss_type": "dapo"},
    "GRPO without checkpointing": {"trainer": "fixed grpo", "gradient_checkpointing": False, "num_agents": 3},
    "RLOO, accumulated": {"trainer": "fixed rloo", "gradient_accumulation_steps": 2},
    "one reference, in both processes": {
        "trainer": "fixed grpo", "observer_groups": "shared_reference", "num_generations": 8, "credit": "difference",
    },
    "completions of other agents": {"trainer": "fixed grpo", "shared_rollouts": True, "shared_rollout_delta": 1.0},
    "Shapley values of three": {"trainer": "fixed grpo", "credit": "shapley", "num_agents": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", ["GRPO", *slow(*(name for name in CASES if name != "GRPO"))])
def test_two_processes_learn_what_one_learns_from_the_same_texts(tmp_path, case):
    """One update of plain SGD, so what is compared is the gradients; 8 texts a micro-batch of both processes."""
    # every rollout is one update: within one, each process shuffles by itself
    steps = CASES[case].get("gradient_accumulation_steps", 1)
    options = {
        "optim": "sgd", "learning_rate": 0.5, "max_steps": 2, "num_iterations": 1, "steps_per_generation": steps,
        "role_exchange_steps": 1, "max_grad_norm": 0.3, **CASES[case],
    }  # fmt: skip
    processes = start_two(
        run, str(tmp_path / "two"), str(tmp_path / "two.pt"), per_device_train_batch_size=4, **options
    )
    run(str(tmp_path / "one"), str(tmp_path / "one.pt"), per_device_train_batch_size=8, **options)
    assert finish(processes) == [0, 0]
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    for agent, parameters in one["agents"].items():
        assert_same(two["agents"][agent], parameters, atol=1e-5)
        assert max(float(value.abs().max()) for key, value in parameters.items() if "lora_B" in key) > 1e-2
    for mine, other in zip(one["logs"], two["logs"], strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            if not name.startswith("clip_ratio"):
                assert other[name] == pytest.approx(mine[name], abs=2e-4), name


@pytest.mark.slow
def test_two_processes_stop_and_go_on(tmp_path):
    """One of two is killed; both resume; each has its own part of the rollout."""
    options = {**LONG, "save_steps": 5, "max_steps": 6, "per_device_train_batch_size": 2}
    assert finish(start_two(run, str(tmp_path / "whole"), str(tmp_path / "whole.pt"), **options)) == [0, 0]
    (tmp_path / "part").mkdir()
    (tmp_path / "whole" / "checkpoint-5").rename(tmp_path / "part" / "checkpoint-5")
    assert missing_parts(tmp_path / "part" / "checkpoint-5") == []
    assert finish(start_two(run, str(tmp_path / "part"), str(tmp_path / "part.pt"), resume=True, **options)) == [0, 0]
    assert_same_end(torch.load(tmp_path / "part.pt"), torch.load(tmp_path / "whole.pt"))
