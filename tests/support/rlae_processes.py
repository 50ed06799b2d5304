"""Runs of `RLAETrainer` in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.support.rlae import data, ensemble_of, parameters_of, trainer_of, vowels


def unjudged_of_one_rank(completions: list[str], prompts: list[str], **_: Any) -> list[float | None]:
    """No judgement of any text of the second process, which has the second half of the prompts of a rollout."""
    if int(os.environ.get("RANK", "0")) == 1:
        return [None] * len(completions)
    return vowels(completions)


class KillAt(TrainerCallback):
    """Ends the process, without a word, after a step."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and args.process_index == self.rank:
            if folder := os.environ.get("KILLED_AT"):
                Path(folder).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    folder: str,
    result: str | None = None,
    objective: str = "ppo",
    ensemble: dict[str, Any] | None = None,
    reward: Any = vowels,
    resume: bool = False,
    kill: tuple[int, int] | None = None,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """Trains, evaluates, and keeps parameters, metrics and logs."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        options = {"ddp_backend": "gloo", **options}
    trainer = trainer_of(
        folder,
        objective,
        reward,
        ensemble_of(objective, **(ensemble or {})),
        eval_dataset=data(5),
        per_device_eval_batch_size=2,
        callbacks=None if kill is None else [KillAt(*kill)],
        **options,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    metrics = trainer.evaluate()
    if result is not None and trainer.is_world_process_zero():
        torch.save({"parameters": parameters_of(trainer.policy), "metrics": metrics, "logs": _logs(trainer)}, result)


def _logs(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def start(*arguments: Any, **options: Any) -> multiprocessing.Process:
    """`run` in a new process, forked from one that has imported everything and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.rlae_processes"])
    process = context.Process(target=run, args=arguments, kwargs=options)
    process.start()
    return process


def start_two(*arguments: Any, **options: Any) -> list[multiprocessing.Process]:
    """`run` in two processes that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    return [
        start(*arguments, environment={**together, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(2)
    ]


def finish(processes: list[multiprocessing.Process], limit_s: float = 60) -> list[int | None]:
    """Exit statuses; what is not done by then is ended."""
    end = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"a run hangs for more than {limit_s} s")
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
