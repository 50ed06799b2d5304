"""Runs of CORY trainers in processes of their own."""

from __future__ import annotations

import os
from typing import Any

import torch

from hf_rlae.trainers import CoryRLOOTrainer, CoryTrainer
from tests.support.cory import adapters_of, trainer_of
from tests.support.stopping import KillAt, SigtermAt

TRAINERS = {"grpo": CoryTrainer, "rloo": CoryRLOOTrainer}


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
