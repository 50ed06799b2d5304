"""The contents of an `RLAETrainer`'s checkpoint, with which a resumed run is bit-exact."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import Any

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import CheckpointError, present
from hf_rlae.members.fingerprint import describe_adapter, describe_member, describe_model, describe_prompts
from hf_rlae.rewards.calls.resolve import RewardCalls
from hf_rlae.trainers.constraints import RewardConstraints
from hf_rlae.trainers.durable.checkpoints import DurableTrainer
from hf_rlae.trainers.durable.saved_tensors import unlike_tensors
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.rollout_buffer import RolloutBuffer
from hf_rlae.trainers.rlae.value_scale import ValueScale


class ResumablePolicy(DurableTrainer):
    """A mixin for trainers of policies: a `DurableTrainer` that also saves the rollout in use.

    Source: ours.
    """

    args: RLAEConfig
    ensemble: EnsembleForCausalLM
    buffer: RolloutBuffer
    constraints: RewardConstraints
    reward_calls: RewardCalls
    value_scale: ValueScale
    _metrics: dict[str, dict[str, list[float]]]
    _update_metrics: dict[str, list[float]]
    _kls: list[tuple[float, float]]
    _num_tokens: int
    _is_stopped: bool

    @property
    @abstractmethod
    def policy(self) -> Any:
        """The policy, unwrapped from DDP."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `DurableTrainer.train`; without a checkpoint, rollouts start from the beginning."""
        self.buffer.clear()
        self._num_tokens, self._is_stopped, self.value_scale = 0, False, ValueScale()
        self.constraints.reset()
        for kept in (self._metrics["train"], self._update_metrics, self._kls):
            kept.clear()
        return super().train(*args, **kwargs)

    def run_settings(self) -> dict[str, Any]:
        """See `DurableTrainer`: how rollouts are made and used, the policy, and the members."""
        names = ("objective", "num_generations", "steps_per_generation", "num_iterations")
        encoder = [
            (name, value)
            for name, value in self.policy.named_parameters()
            if "encoder." in name and not value.requires_grad
        ]
        policy = describe_model(self.policy.config, encoder)
        for name in ("span_length", "members"):  # the members are compared below
            policy["config"].pop(name, None)
        return {
            **super().run_settings(),
            **{name: getattr(self.args, name) for name in names},
            "trainer": "RLAETrainer",
            "policy": {**policy, "adapter": describe_adapter(self.policy)},
            "members": [describe_member(member) for member in self.ensemble.members],
        }

    def _obstacle(self, folder: Path) -> str | None:
        found = super()._obstacle(folder)
        unlike = [] if found else unlike_tensors(folder, self.policy)
        if not unlike:
            return found
        return (
            f"{folder} has {len(unlike)} tensors that this policy does not have, or has with another shape, such as "
            f"{unlike[0]}: an earlier version of hf_rlae, in which the critic was another one, or another policy saved "
            "it. Resume with that version, or load its weights with `PolicyModel.from_pretrained` and train without "
            "resume_from_checkpoint"
        )

    def run_notes(self) -> dict[str, Any]:
        """See `DurableTrainer`."""
        names = (
            "advantages", "temperature", "top_p", "top_k", "max_completion_length", "multi_objective_aggregation",
            "reward_constraints", "member_cost", "observation_dtype",
        )  # fmt: skip
        return {
            **{name: getattr(self.args, name) for name in names},
            "generation_kwargs": repr(self.args.generation_kwargs),
            "chat_template_kwargs": repr(self.args.chat_template_kwargs),
            "span_length": self.ensemble.config.span_length_of_policy,
            "reward_funcs": self.reward_calls.names,
            "reward_weights": self.reward_calls.weights.tolist(),
            "train_dataset": describe_prompts(self.train_dataset),
        }

    def extra_state(self) -> dict[str, Any]:
        """See `DurableTrainer`: the rollout in use, counters and metrics."""
        return {
            "buffer": self.buffer.state(),
            "num_tokens": self._num_tokens,
            "is_stopped": self._is_stopped,
            "value_scale": self.value_scale.state(),
            "multipliers": dict(self.constraints.multipliers),
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `DurableTrainer`."""
        self.buffer.load(state["buffer"])
        kept, own = self.buffer.rollouts, present(self.args.generation_batch_size, "") // self.args.world_size
        if kept is not None and len(kept) != own:
            raise CheckpointError(
                f"the rollout of this checkpoint has {len(kept)} completions in each process, and this run has {own}: "
                "an earlier version of hf_rlae saved it, in which every process kept all. Resume with that version, or "
                "load its weights and train without resume_from_checkpoint"
            )
        self._num_tokens = state["num_tokens"]
        self._is_stopped = state["is_stopped"]
        self.value_scale = ValueScale(**state["value_scale"])
        self.constraints.load(state.get("multipliers", {}))  # earlier versions saved none
        self._metrics["train"] = defaultdict(list, {name: list(v) for name, v in state["metrics"].items()})
