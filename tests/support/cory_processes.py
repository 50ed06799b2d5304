"""Runs of CORY trainers in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from typing import Any

import torch
from transformers import TrainerCallback

from hf_rlae.trainer import CoryRLOOTrainer, CoryTrainer
from tests.support.cory import adapters_of, trainer_of
from tests.support.rlae_processes import KillAt

TRAINERS = {"grpo": CoryTrainer, "rloo": CoryRLOOTrainer}


class SigtermAt(TrainerCallback):
    """Asks the process to end, in the middle of a run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class FixedTexts:
    """A mixin: which texts are written depends on the prompts and the row in the whole batch, not on the process."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        texts = []
        start = self.accelerator.process_index * len(prompt_ids)  # type: ignore[attr-defined]
        for row, ids in enumerate(prompt_ids, start):
            generator = torch.Generator().manual_seed(1000 * self.calls + 31 * row + sum(ids))
            texts.append(torch.randint(1, 300, (6,), generator=generator).tolist())
        return texts, None


class FixedGRPO(FixedTexts, CoryTrainer):
    """See `FixedTexts`."""


class FixedRLOO(FixedTexts, CoryRLOOTrainer):
    """See `FixedTexts`; RLOO asks for the texts alone."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)[0]


TRAINERS |= {"fixed grpo": FixedGRPO, "fixed rloo": FixedRLOO}


def run(
    folder: str,
    result: str | None = None,
    trainer: str = "grpo",
    resume: bool = False,
    kill: int | None = None,
    sigterm: int | None = None,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """Trains, and keeps the agents, the optimizer's state and the logs."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        options = {"ddp_backend": "gloo", **options}
    callbacks: list[Any] = [] if kill is None else [KillAt(kill)]
    callbacks += [] if sigterm is None else [SigtermAt(sigterm)]
    made = trainer_of(folder, TRAINERS[trainer], callbacks=callbacks, **options)
    made.train(resume_from_checkpoint=resume or None)
    if result is not None and made.is_world_process_zero():
        logs = [entry for entry in made.state.log_history if "loss" in entry]
        logs = [{key: value for key, value in entry.items() if "time" not in key} for entry in logs]
        state = made.optimizer.state_dict()["state"]
        torch.save({"agents": adapters_of(made), "logs": logs, "optimizer": state}, result)


def start(*arguments: Any, **options: Any) -> multiprocessing.Process:
    """`run` in a new process, forked from one that has imported everything and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.cory_processes"])
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
