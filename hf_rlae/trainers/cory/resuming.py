"""What a checkpoint of a CORY trainer holds, so that a run goes on to the bit."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import torch

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers.cory.agents import AgentAdapters
from hf_rlae.trainers.cory.logs import plain_logs
from hf_rlae.trainers.durable.checkpoints import DurableTrainer
from hf_rlae.trainers.durable.prompt_order import EpochRepeatSampler

logger = logging.getLogger(__name__)


class ResumableRollouts(DurableTrainer):
    """A mixin for TRL trainers with rollouts and agents: see `DurableTrainer`; the rollout in use is kept, too.

    TRL itself writes a new rollout after a resume, counts its micro-batches from 0 again, and begins with the order of
    the first epoch's prompts.

    Source: ours.
    """

    agents: AgentAdapters
    args: Any
    _metrics: Any
    _logs: Any
    _step: Any
    _buffered_inputs: Any

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        return EpochRepeatSampler(
            self.train_dataset if dataset is None else dataset,  # type: ignore[arg-type]
            mini_repeat_count=self.args.num_generations,
            batch_size=self.args.generation_batch_size // self.args.num_generations,
            repeat_count=self.args.num_iterations * self.args.steps_per_generation,
            shuffle=self.args.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `DurableTrainer.train`; without a checkpoint to resume from, rollouts begin anew."""
        self._step, self._buffered_inputs = 0, None
        self._metrics["train"].clear()
        return super().train(*args, **kwargs)

    @property
    def _batches(self) -> dict[str, int]:
        """How a rollout is dealt out to updates."""
        names = ("per_device_train_batch_size", "steps_per_generation", "num_iterations", "num_generations")
        return {name: getattr(self.args, name) for name in names}

    def extra_state(self) -> dict[str, Any]:
        """See `DurableTrainer`: the rollout that is being learned from, and what has not been logged yet."""
        is_used_up = self._step % (self.args.steps_per_generation * self.args.num_iterations) == 0
        return {
            "agents": self.agents.names,
            "step": self._step,
            "batches": self._batches,
            "buffer": None if is_used_up else self._buffered_inputs,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "logs": plain_logs(self._logs) if self.args.log_completions else None,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `DurableTrainer`.

        Raises:
            CheckpointError: it was saved with other names of agents, or inside a rollout that had other batches.
        """
        if state["agents"] != self.agents.names:
            raise CheckpointError(
                f"the checkpoint has the agents {', '.join(state['agents'])}, this run has "
                f"{', '.join(self.agents.names)}; take the agent_names with which it was saved"
            )
        saved, own = state["batches"], self._batches
        changed = [name for name in own if saved[name] != own[name]]
        if state["buffer"] and changed:
            raise CheckpointError(
                "the checkpoint was saved inside a rollout with "
                + ", ".join(f"{name}={saved[name]}" for name in changed)
                + "; this run has "
                + ", ".join(f"{name}={own[name]}" for name in changed)
                + ", by which that rollout cannot be dealt out; take what it was saved with"
            )
        device = self.accelerator.device
        self._step = state["step"]
        self._buffered_inputs = state["buffer"] and [
            {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            for batch in state["buffer"]
        ]
        self._metrics["train"] = defaultdict(list, {name: list(values) for name, values in state["metrics"].items()})
        for name, values in (state["logs"] or {}).items():
            if isinstance(values, dict):
                for column, entries in values.items():
                    self._logs[name][column].extend(entries)
            else:
                self._logs[name].extend(values)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.agents.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        logger.info("loading the best agents, of %s", self.state.best_model_checkpoint)
        self.agents.load(str(self.state.best_model_checkpoint))
