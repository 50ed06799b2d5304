"""The contents of a CORY trainer's checkpoint, with which a resumed run is bit-exact."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from typing import Any

import torch
from trl.trainer.base_trainer import _BaseTrainer

from hf_rlae.members.fingerprint import describe_adapter, describe_model, describe_prompts, describe_tokenizer
from hf_rlae.trainers.constraints import RewardConstraints
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
    reward_func_names: list[str]
    reward_weights: torch.Tensor
    constraints: RewardConstraints

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        return EpochRepeatSampler.of_rollouts(self, dataset)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `DurableTrainer.train`; without a checkpoint, rollouts start from the beginning."""
        self._step, self._buffered_inputs = 0, None
        self._metrics["train"].clear()
        self.constraints.reset()
        return super().train(*args, **kwargs)

    def run_settings(self) -> dict[str, Any]:
        """See `DurableTrainer`: how rollouts are made and used, the agents and their roles, and the base model."""
        names = (
            "num_generations", "steps_per_generation", "num_iterations", "role_exchange_steps", "knowledge_transfer",
            "credit", "observer_groups", "team_normalization", "shared_rollouts",
        )  # fmt: skip
        kinds = (kind for kind in type(self).__mro__ if issubclass(kind, _BaseTrainer))
        model = self.agents.model
        frozen = [(name, value) for name, value in model.named_parameters() if not value.requires_grad]
        base = {**describe_model(model.config, frozen), "tokenizer": describe_tokenizer(self.processing_class)}
        return {
            **super().run_settings(),
            **{name: getattr(self.args, name) for name in names},
            "roles": self.args.role_names,
            "trainer": next(kind.__name__ for kind in kinds if not issubclass(kind, ResumableRollouts)),
            "agent_names": self.agents.names,
            "peft_config": describe_adapter(model),
            "model": base,
        }

    def run_notes(self) -> dict[str, Any]:
        """See `DurableTrainer`."""
        names = ("beta", "temperature", "top_p", "top_k", "max_completion_length", "reward_constraints")
        return {
            **{name: getattr(self.args, name) for name in names},
            "observer_template": self.args.told_template,
            "reward_funcs": self.reward_func_names,
            "reward_weights": self.reward_weights.tolist(),
            "train_dataset": describe_prompts(self.train_dataset),
        }

    def extra_state(self) -> dict[str, Any]:
        """See `DurableTrainer`: the rollout in use, and metrics that are not logged yet."""
        is_used_up = self._step % (self.args.steps_per_generation * self.args.num_iterations) == 0
        return {
            "step": self._step,
            "multipliers": dict(self.constraints.multipliers),
            "buffer": None if is_used_up else self._buffered_inputs,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "logs": logs_as_json(self._logs) if self.args.log_completions else "{}",
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `DurableTrainer`."""
        device = self.accelerator.device
        self._step = state["step"]
        self.constraints.load(state.get("multipliers", {}))  # earlier versions saved none
        self._buffered_inputs = state["buffer"] and [
            {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            for batch in state["buffer"]
        ]
        self._metrics["train"] = defaultdict(list, {name: list(values) for name, values in state["metrics"].items()})
        logs = state["logs"] or {}
        self._load_logs(json.loads(logs) if isinstance(logs, str) else logs)  # earlier versions saved no JSON

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
        if self._best_is_whole():
            logger.info("loading the best agents from %s", self.state.best_model_checkpoint)
            self.agents.load(str(self.state.best_model_checkpoint))
