"""`RLAETrainer` in several processes, and in processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.support.processes import finish, start, start_two
from tests.support.rlae import assert_same
from tests.support.rlae_processes import logging_its_rank, run, unjudged_of_one_rank, vowels
from tests.support.tiers import slow

CASES = {
    "ppo": {"objective": "ppo", "ensemble": {"kind": "different"}},
    "mappo": {"objective": "mappo", "gradient_accumulation_steps": 2, "target_kl": 1e-4},
    "mixture": {"objective": "mixture", "ensemble": {"observation": "both"}},
    "a rank without judged texts": {"objective": "mixture", "reward": unjudged_of_one_rank, "weight_decay": 0.1},
}


def half_judged(completions, prompts, **_):
    """In one process, what `unjudged_of_one_rank` says in two."""
    if len(completions) < 8:
        return vowels(completions)
    return [*vowels(completions[:4]), *[None] * 4]


half_judged.__name__ = unjudged_of_one_rank.__name__


@pytest.mark.parametrize("case", ["mixture", *slow(*(name for name in CASES if name != "mixture"))])
def test_two_processes_learn_what_one_learns_from_the_same_texts(tmp_path, case):
    # Adam divides by how large gradients are: where they are 0 but for rounding, it would learn from rounding
    # one update per pass: if there are more, each process shuffles its own rows
    options = {"optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2, **CASES[case]}
    processes = start_two(
        run, str(tmp_path / "two"), str(tmp_path / "two.pt"), per_device_train_batch_size=2, **options
    )
    if options.get("reward") is unjudged_of_one_rank:
        options["reward"] = half_judged
    run(str(tmp_path / "one"), str(tmp_path / "one.pt"), **options)
    assert finish(processes) == [0, 0]
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert len(two["logs"]) == 4
    assert_same(two["parameters"], one["parameters"], atol=1e-6)
    for mine, other in zip(one["logs"][:1], two["logs"][:1], strict=True):
        assert mine.keys() == other.keys()
        for name in ("loss", "reward", "reward_std", "num_tokens", "weights/entropy", "completions/mean_length"):
            assert other[name] == pytest.approx(mine[name], abs=1e-5), name
    if "reward" not in options:
        for name in ("eval_reward", "eval_weights/entropy", "eval_reward_std"):
            assert two["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-4), name


@pytest.mark.parametrize("objective", ["mixture", "ppo"])
@pytest.mark.parametrize("saving", [{"activation_checkpointing": True}, {"encoder_batch_size": 3}])
@pytest.mark.slow
def test_two_processes_with_activations_computed_anew(tmp_path, objective, saving):
    """Parameters that no loss reaches, such as an encoder's pooler, do not hold up the other process."""
    options = {"objective": objective, "ensemble": {"observation": "text"}, **saving}
    processes = start_two(
        run, str(tmp_path / "two"), str(tmp_path / "two.pt"), per_device_train_batch_size=2, **options
    )
    assert finish(processes) == [0, 0]
    assert len(torch.load(tmp_path / "two.pt")["logs"]) == 4


@pytest.mark.slow
def test_what_rewards_log_is_gathered(tmp_path):
    """Columns have the texts of both processes in their order, and metrics are means over both."""
    folder = tmp_path / "out"
    processes = start_two(
        run,
        str(folder),
        str(tmp_path / "two.pt"),
        per_device_train_batch_size=2,
        reward=logging_its_rank,
        log_completions=True,
    )
    assert finish(processes) == [0, 0]
    logs = torch.load(tmp_path / "two.pt")["logs"]
    assert [entry["rank"] for entry in logs if "rank" in entry] == [0.5]
    table = pd.read_parquet(sorted((folder / "completions").glob("completions_0*.parquet"))[0])
    assert table["own"].tolist() == table["completion"].tolist()
    assert table["of_the_second"].fillna("").tolist() == [""] * 4 + table["completion"].tolist()[4:]
    table = pd.read_parquet(next((folder / "completions").glob("completions_eval_*.parquet")))
    assert table["own"].tolist() == table["completion"].tolist()
    assert len(table) == 5


@pytest.mark.slow
def test_killed_in_the_middle_of_a_rollout_and_resumed(tmp_path):
    """Rollouts serve four updates: after the sixth, with the fifth saved."""
    options = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10, "objective": "mixture"}
    alone = start(run, str(tmp_path / "alone"), str(tmp_path / "alone.pt"), **options)
    assert finish([start(run, str(tmp_path / "part"), kill=(6, 0), **options)]) == [-signal.SIGKILL]
    assert sorted(path.name for path in (tmp_path / "part").glob("checkpoint-*")) == ["checkpoint-5"]
    assert finish([start(run, str(tmp_path / "part"), str(tmp_path / "part.pt"), resume=True, **options), alone]) == [
        0,
        0,
    ]
    whole, resumed = torch.load(tmp_path / "alone.pt"), torch.load(tmp_path / "part.pt")
    assert_same(resumed["parameters"], whole["parameters"])
    assert resumed["logs"] == whole["logs"]


@pytest.mark.slow
def test_two_processes_resume(tmp_path):
    """Each process saves its own completions; if the file of one is damaged, an earlier checkpoint is taken."""
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "per_device_train_batch_size": 2}
    folder = tmp_path / "whole"
    whole = start_two(run, str(folder), str(tmp_path / "whole.pt"), **options)
    assert finish(whole) == [0, 0]
    files = [folder / "checkpoint-3" / f"hf_rlae_state_{rank}.pt" for rank in range(2)]
    saved = [torch.load(file, weights_only=True)["extra"]["buffer"]["rollouts"] for file in files]
    assert [len(rows["prompts"]) for rows in saved] == [4, 4]
    assert {len(tensor) for rows in saved for tensor in rows["observation"].values()} == {4}
    assert not set(saved[0]["prompts"]) & set(saved[1]["prompts"])
    torn = folder / "checkpoint-6" / "hf_rlae_state_1.pt"
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")
    resumed = start_two(run, str(folder), str(tmp_path / "resumed.pt"), resume=True, **options)
    assert finish(resumed) == [0, 0]
    one, other = torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "resumed.pt")
    assert_same(other["parameters"], one["parameters"])
    assert other["logs"] == one["logs"]


@pytest.mark.slow
def test_one_of_two_processes_is_killed_in_the_middle_of_a_rollout(tmp_path):
    """The other one ends with an error; both resume from their own completions of the rollout in use."""
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "per_device_train_batch_size": 2}
    assert finish(start_two(run, str(tmp_path / "whole"), str(tmp_path / "whole.pt"), **options)) == [0, 0]
    ends = finish(start_two(run, str(tmp_path / "part"), kill=(5, 1), **options))
    assert ends[1] == -signal.SIGKILL
    assert ends[0] not in (0, None)
    assert sorted(path.name for path in (tmp_path / "part").glob("checkpoint-*")) == ["checkpoint-3"]
    resumed = start_two(run, str(tmp_path / "part"), str(tmp_path / "part.pt"), resume=True, **options)
    assert finish(resumed) == [0, 0]
    one, other = torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "part.pt")
    assert_same(other["parameters"], one["parameters"])
    assert other["logs"] == one["logs"]


@pytest.mark.slow
def test_a_lost_rank_ends_the_job(tmp_path):
    """Under `accelerate launch`, within 30 seconds of the rank's end.

    `--multi_gpu` means several processes, whatever they compute on; without it accelerate starts a single one.
    """
    arguments = {"folder": str(tmp_path / "out"), "kill": [2, 1], "max_steps": 4000, "per_device_train_batch_size": 2}
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_cpu_threads_per_process", "1", "--main_process_port", "0", "--mixed_precision", "no"),
        *("--module", "tests.support.rlae_processes", json.dumps({**arguments, "ddp_backend": None})),
    ]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "KILLED_AT": str(tmp_path / "killed"), "PYTHONPATH": str(root)}
    job = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)
    took = time.time() - float((tmp_path / "killed").read_text())
    assert job.returncode != 0
    assert took < 30, took
    assert "rank      : 1" in job.stderr
    assert "exitcode  : -9" in job.stderr
