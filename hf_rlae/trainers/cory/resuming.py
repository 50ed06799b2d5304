"""The contents of a CORY trainer's checkpoint, with which a resumed run is bit-exact."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from typing import Any

import torch

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers.cory.agents import AgentAdapters
from hf_rlae.trainers.cory.logs import logs_as_json
from hf_rlae.trainers.durable.checkpoints import DurableTrainer
from hf_rlae.trainers.durable.prompt_order import EpochRepeatSampler

logger = logging.getLogger(__name__)


class ResumableRollouts(DurableTrainer):
    """A mixin for TRL trainers with rollouts and agents: a `DurableTrainer` that also saves the rollout in use.

    After a resume, TRL itself generates a new rollout, counts micro-batches from 0 again, and starts with the prompt
    order of the first epoch.

    Source: ours.
    """

    agents: AgentAdapters
    args: Any
    _metrics: Any
    _logs: Any
    _step: Any
    _buffered_inputs: Any

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        return EpochRepeatSampler.of_rollouts(self, dataset)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `DurableTrainer.train`; without a checkpoint, rollouts start from the beginning."""
        self._step, self._buffered_inputs = 0, None
        self._metrics["train"].clear()
        return super().train(*args, **kwargs)

    @property
    def _batches(self) -> dict[str, int]:
        """How a rollout is split into updates."""
        names = ("per_device_train_batch_size", "steps_per_generation", "num_iterations", "num_generations")
        return {name: getattr(self.args, name) for name in names}

    def extra_state(self) -> dict[str, Any]:
        """See `DurableTrainer`: the rollout in use, and metrics that are not logged yet."""
        is_used_up = self._step % (self.args.steps_per_generation * self.args.num_iterations) == 0
        return {
            "agents": self.agents.names,
            "step": self._step,
            "batches": self._batches,
            "buffer": None if is_used_up else self._buffered_inputs,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "logs": logs_as_json(self._logs) if self.args.log_completions else "{}",
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `DurableTrainer`.

        Raises:
            CheckpointError: it was saved with other agent names, or inside a rollout with other batches.
        """
        if state["agents"] != self.agents.names:
            raise CheckpointError(
                f"the checkpoint has the agents {', '.join(state['agents'])}, this run has "
                f"{', '.join(self.agents.names)}; give the agent_names with which it was saved"
            )
        if state["buffer"]:
            self._check_batches(state["batches"])
        device = self.accelerator.device
        self._step = state["step"]
        self._buffered_inputs = state["buffer"] and [
            {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            for batch in state["buffer"]
        ]
        self._metrics["train"] = defaultdict(list, {name: list(values) for name, values in state["metrics"].items()})
        self._load_logs(json.loads(state["logs"]))

    def _check_batches(self, saved: dict[str, int]) -> None:
        own = self._batches
        changed = [name for name in own if saved[name] != own[name]]
        if changed:
            before, now = (", ".join(f"{name}={sizes[name]}" for name in changed) for sizes in (saved, own))
            raise CheckpointError(
                f"the checkpoint was saved inside a rollout with {before}; this run has {now}, which do not fit that "
                "rollout; give the values with which it was saved"
            )

    def _load_logs(self, logs: dict[str, Any]) -> None:
        for name, values in logs.items():
            if isinstance(values, dict):
                for column, entries in values.items():
                    self._logs[name][column].extend(entries)
            else:
                self._logs[name].extend(values)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.agents.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        logger.info("loading the best agents from %s", self.state.best_model_checkpoint)
        self.agents.load(str(self.state.best_model_checkpoint))
