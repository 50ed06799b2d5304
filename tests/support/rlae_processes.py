"""Runs of `RLAETrainer` in processes of their own."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from tests.support.rlae import data, ensemble_of, parameters_of, trainer_of, vowels
from tests.support.stopping import KillAt


def unjudged_of_one_rank(completions: list[str], prompts: list[str], **_: Any) -> list[float | None]:
    """No judgement of any text of the second process, which has the second half of the prompts of a rollout."""
    if int(os.environ.get("RANK", "0")) == 1:
        return [None] * len(completions)
    return vowels(completions)


def logging_its_rank(completions: list[str], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
    """Rewards that say of which process they are, one column in one process only."""
    rank = int(os.environ.get("RANK", "0"))
    log_metric("rank", rank)
    log_extra("own", completions)
    if rank == 1:
        log_extra("of_the_second", completions)
    return vowels(completions)


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


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
