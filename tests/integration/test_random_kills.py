"""`RLAETrainer` and `CoryTrainer`, killed at random times and resumed, end as runs that were left alone."""

from __future__ import annotations

import random
import time

import pytest
import torch

from hf_rlae.trainers.durable.checkpoint_folders import whole_checkpoints
from tests.support import cory_processes, rlae_processes
from tests.support.processes import finish, start
from tests.support.tiers import draws, show_figure
from tests.support.trainers import assert_equal

STEPS = {"save_strategy": "steps", "save_steps": 3, "max_steps": 10}
RUNS = {
    "RLAETrainer": (rlae_processes.run, {"objective": "mixture", "ensemble": {"kind": "different"}}, "parameters"),
    "CoryTrainer": (cory_processes.run, {"role_exchange_steps": 2, "lr_scheduler_type": "cosine"}, "agents"),
    "CoryRLOOTrainer": (cory_processes.run, {"trainer": "rloo", "role_exchange_steps": 2}, "agents"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_times(tmp_path, name):
    """A signal that knows nothing of rollouts, updates and saves."""
    run, options, weights = RUNS[name]
    options = {**STEPS, **options}

    def begin(folder):
        process = start(run, str(folder), str(folder) + ".pt", **options)
        while process.is_alive() and not folder.exists():
            time.sleep(0.001)
        return process, time.monotonic()

    process, began = begin(tmp_path / "alone")
    assert finish([process]) == [0]
    duration, rng, kept = time.monotonic() - began, random.Random(name), []
    whole = torch.load(tmp_path / "alone.pt")
    for number in range(draws(1, 20)):
        folder = tmp_path / str(number)
        process, _ = begin(folder)
        process.join(rng.uniform(0, duration))
        process.kill()
        process.join()
        kept.append(max(whole_checkpoints(folder), default=0))
        assert finish([start(run, str(folder), str(folder) + ".pt", resume=True, **options)]) == [0]
        end = torch.load(str(folder) + ".pt")
        assert_equal(end if kept[-1] < 10 else end[weights], whole if kept[-1] < 10 else whole[weights])
    show_figure(f"{name}: SIGKILL at {len(kept)} random times, resumed from the steps {sorted(kept)}: all ends equal")
