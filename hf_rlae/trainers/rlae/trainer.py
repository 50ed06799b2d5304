"""`RLAETrainer`: reinforcement learning of the weights that an ensemble gives its members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import disable_dropout_in_model, identity

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.objectives import gae, group_relative, objectives, scatter_spans, terminal_rewards, whiten
from hf_rlae.rewards.calls.resolve import RewardCalls
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.durable.checkpoints import DurableTrainer
from hf_rlae.trainers.durable.finite import FiniteTrainer
from hf_rlae.trainers.durable.prompt_order import EpochRepeatSampler
from hf_rlae.trainers.rlae.card import PolicyPublisher
from hf_rlae.trainers.rlae.checks import check_datasets, check_policy, check_reward_columns, wrap_policy
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.reports import CompletionLog
from hf_rlae.trainers.rlae.rollout_buffer import RolloutBuffer
from hf_rlae.trainers.rlae.rollout_trainer import TRAIN_SEEDS, RolloutTrainer, mean_of, or_none
from hf_rlae.trainers.rlae.rollouts import Rollouts, concatenate

_LABELS = {
    "clip_ratio": "clip_ratio",
    "value_loss": "value/loss",
    "value_clip_ratio": "value/clip_ratio",
    "explained_variance": "value/explained_variance",
}
"""How the metrics of objectives are called in logs, where that is not `policy/` and the name."""


class RLAETrainer(PolicyPublisher, RolloutTrainer, DurableTrainer, FiniteTrainer, _BaseTrainer):
    """Trains the policy of an ensemble on rewards for finished texts; the members stay as they are.

    For every prompt the ensemble writes `num_generations` texts; at each span's first token the policy is asked for
    weights about the text as it stands. Each text gets one reward, at its end. The policy is then updated by one of
    three objectives: `ppo`, `mappo`, `mixture` (see [`RLAEConfig`]).

    `trainer.model` is the policy: optimizer, checkpoints and several processes see nothing else. `trainer.ensemble`
    is the whole.

    Random numbers belong to rows: a rollout is the same whatever it is batched with, so that two processes learn what
    one learns from the same global batch, and a resumed run what an uninterrupted one learns. (Where the ensemble
    draws members, rows share the numbers of those draws.)

    Override points: `roll_out` (texts), `_calculate_rewards` (rewards), `compute_loss` (the update).

    Source: RLAE (arXiv 2506.00439).

    Args:
        model (`EnsembleForCausalLM`): whose policy is a [`PolicyModel`].
        reward_funcs (`str`, callable, `PreTrainedModel` or a list of these): a registered name (see
            `hf_rlae.rewards`), a function in TRL's form, sync or async, or a reward model.
        args (`RLAEConfig`, *optional*): how.
        train_dataset (`datasets.Dataset`): with a column `prompt`, strings or messages; all other columns are handed
            to the reward functions.
        eval_dataset (`datasets.Dataset` or `dict` of these, *optional*): the same.
        reward_processing_classes (*optional*): tokenizers of reward models, one a reward function.
        callbacks, optimizers: as in transformers.
        peft_config (`peft.PeftConfig`, *optional*): LoRA on the policy's encoder; its heads are trained fully.

    Raises:
        ConfigError: something that does not fit: an ensemble without a learned policy, an actor that the objective
            cannot train, an empty dataset, no column `prompt`.
        InputError: a prompt that is longer than a member's context.
        RewardError: a reward function that returns something else than one number or `None` for each text, or takes
            too long.
        NonFiniteError: NaN or infinity in rewards, members' probabilities, gradients or weights.
    """

    _tag_names = ["rlae", "hf_rlae"]  # noqa: RUF012
    _name = "RLAE"
    _paper = {  # noqa: RUF012
        "title": "RLAE: Reinforcement Learning-Assisted Ensemble for LLMs",
        "id": "2506.00439",
    }
    loss_is_scaled_for_ga = True  # type: ignore[assignment]
    args: RLAEConfig

    def __init__(
        self,
        model: EnsembleForCausalLM,
        reward_funcs: Any,
        args: RLAEConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = RLAEConfig("rlae-policy") if args is None else args
        check_policy(model, args)
        check_datasets(model, args, train_dataset, eval_dataset)
        self.ensemble = model
        self.objective = objectives[args.objective]()
        self.settings = args.objective_settings()
        self.reward_calls = RewardCalls(
            reward_funcs, args.reward_weights, args.reward_timeout, reward_processing_classes
        )
        if type(self)._calculate_rewards is RolloutTrainer._calculate_rewards:
            check_reward_columns(self.reward_calls.required_columns, train_dataset, eval_dataset)
        policy = wrap_policy(model, peft_config)
        if args.disable_dropout:
            disable_dropout_in_model(policy)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._update_metrics: dict[str, list[float]] = defaultdict(list)
        self._kls: list[tuple[float, float]] = []
        self._num_tokens = 0
        self._is_stopped = False
        self._evaluated: list[tuple[Rollouts, torch.Tensor]] = []
        self._reported: dict[str, list[float]] = defaultdict(list)
        self.completion_log = CompletionLog(args)
        if args.n_gpu > 1:  # members may lie on several devices; the policy lies on one, and is not split by rows
            args._n_gpu = 1
        super().__init__(
            model=policy,
            args=args,
            data_collator=identity,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.policy.add_model_tags(self._tag_names)
        self.buffer = RolloutBuffer(
            args.seed,
            args.steps_per_generation,  # type: ignore[arg-type]
            args.num_iterations,
            args.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        for member in model.members:
            member.wrapper.eval()
        if all(not member.has_device_map for member in model.members):
            model.to(self.accelerator.device)  # type: ignore[arg-type]

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """See `FiniteTrainer`."""
        return {"policy": [parameter for parameter in self.policy.parameters() if parameter.requires_grad]}

    # -- data ---------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        """What `remove_unused_columns=True` keeps: prompts, and the columns that reward functions are known to read."""
        if self._signature_columns is None:
            self._signature_columns = sorted({"prompt", *self.reward_calls.columns})  # type: ignore[assignment]

    def get_train_dataloader(self) -> Any:
        """Batches of prompts for whole rollouts; each comes as often as its texts are used.

        What is loaded are places in the dataset: rows are read when a rollout is due, not for every micro-batch of it.
        """
        self._train_rows: Any = self._remove_unused_columns(self.train_dataset, "Training")  # type: ignore[arg-type]
        return self._get_dataloader(
            dataset=range(len(self._train_rows)),  # type: ignore[arg-type]
            description="Training",
            batch_size=self._train_batch_size * self.buffer.steps,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        return EpochRepeatSampler(
            self.train_dataset if dataset is None else dataset,  # type: ignore[arg-type]
            mini_repeat_count=self.args.num_generations,
            batch_size=self.args.generation_batch_size // self.args.num_generations,  # type: ignore[operator]
            repeat_count=self.args.num_iterations * self.buffer.steps,
            shuffle=self.args.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochRepeatSampler:
        return EpochRepeatSampler(
            eval_dataset,
            mini_repeat_count=self.args.num_generations_eval,
            shuffle=False,
            seed=self.args.seed,
            epoch=lambda: 0,
        )

    def _fill_buffer(self, inputs: list[dict[str, Any]]) -> None:
        """The next rollout: texts, rewards and advantages of all processes."""
        seeds = self._seeds(TRAIN_SEEDS, self.buffer.number, len(inputs))
        rollouts = self._written(inputs, seeds, self.objective.explores)
        rewards_per_func = self._score(inputs, rollouts)
        rollouts = concatenate(self._gathered(rollouts.to("cpu")))
        rewards = total_rewards(rewards_per_func, self.reward_calls.weights)
        rollouts.advantages, rollouts.returns = self._advantages(rollouts, rewards)
        self._num_tokens += int(rollouts.completion_mask.sum())
        for name, value in self._described(rollouts, rewards_per_func, self.args.num_generations).items():
            self._metrics["train"][name].append(value)
        self.completion_log.add(rollouts, rewards_per_func, self.reward_calls.names, self.member_names)
        is_judged = ~rewards.isnan()[:, None]
        rollouts.span_mask = rollouts.span_mask & is_judged
        rollouts.completion_mask = rollouts.completion_mask & is_judged
        self.buffer.rollouts = rollouts
        self._is_stopped = False

    def _advantages(self, rollouts: Rollouts, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        args = self.args
        if args.advantages == "group_relative":
            return group_relative(rewards, args.num_generations, args.scale_rewards), None
        mask = rollouts.span_mask & ~rewards.isnan()[:, None]
        paid = terminal_rewards(rewards.nan_to_num(), mask)
        advantages, returns = gae(paid, rollouts.old_values, mask, args.gamma, args.lam)
        return (whiten(advantages, mask) if args.whiten_advantages else advantages), returns

    # -- updates ------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `DurableTrainer.train`; without a checkpoint to resume from, rollouts begin anew."""
        self.buffer.clear()
        self._num_tokens, self._is_stopped = 0, False
        for kept in (self._metrics["train"], self._update_metrics, self._kls):
            kept.clear()
        return super().train(*args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """This process's micro-batch of the buffer, after a new rollout if one is due; `inputs` if it is one.

        In training `inputs` are places in the dataset, one a text of the rollout.
        """
        if self._is_evaluating or isinstance(inputs, dict):
            return inputs
        if self.buffer.is_due:
            self._fill_buffer(self._train_rows.__getitems__(inputs))
        num_items = self.objective.num_items(self._batch(self.buffer.update()))
        return {"rollouts": self.buffer.micro_batch().to(self.accelerator.device), "num_items": num_items}

    def _batch(self, rollouts: Rollouts) -> dict[str, torch.Tensor]:
        """What the objective takes from rollouts."""
        tensors = rollouts.tensors()
        return {name: tensors[name] for name in self.objective.batch_axes if name in tensors}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; nothing is learned from it once the KL of this rollout has passed `target_kl`.

        Nor is anything learned from an update in which no text could be judged.
        """
        model.train()
        prepared = self._prepare_inputs(inputs)
        if self._is_stopped or not int(prepared["num_items"]["spans"]):
            loss = torch.zeros((), device=self.accelerator.device)
            if self.accelerator.scaler is not None:  # it refuses an update without any gradient
                for parameter in self.policy.parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
        else:
            loss = super().training_step(model, prepared, num_items_in_batch)
        self.buffer.position += 1
        if self.buffer.is_between_updates:
            self._end_update()
        return loss

    def _end_update(self) -> None:
        """Puts together what the micro-batches of an update said, in all processes, and looks at the KL."""
        parts = self._gathered((dict(self._update_metrics), list(self._kls)))
        self._update_metrics.clear()
        self._kls.clear()
        for metrics, _ in parts:
            for name, values in metrics.items():
                self._metrics["train"][name].extend(values)
        if self.args.target_kl is None:
            return
        self._metrics["train"]["policy/stopped"].append(float(self._is_stopped))
        kls = [entry for _, part in parts for entry in part]
        count = sum(count for _, count in kls)
        if count and sum(kl * count for kl, count in kls) / count > self.args.target_kl:
            self._is_stopped = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's loss for one micro-batch. An override point.

        Args:
            model (`nn.Module`): the policy, perhaps wrapped.
            inputs (`dict`): `rollouts` ([`Rollouts`], one row a text) and `num_items`, what the whole update counts.
            return_outputs (`bool`, defaults to `False`): whether the policy's output is wanted, too.
            num_items_in_batch: not used; see `num_items`.
        """
        rollouts: Rollouts = inputs["rollouts"]
        mask = rollouts.span_mask
        if not bool(mask.any()):  # other processes have something to learn from, and wait for this one's gradients
            mask = torch.zeros_like(mask)
            mask[0, 0] = True
        seen = {name: tensor[mask] for name, tensor in rollouts.observation.items()}
        actions = None if rollouts.actions is None else rollouts.actions[mask]
        output = model(seen, actions=actions)
        names = ("weights", "log_probs", "entropies", "values")
        said = {name: getattr(output, name) for name in names if getattr(output, name) is not None}
        # what the objective does not look at has gradients of 0, so that several processes agree on who has any
        nothing = sum(value.sum() for value in said.values()) * 0.0
        said = {name: scatter_spans(value, mask) for name, value in said.items() if name in self.objective.output_axes}
        if not bool(rollouts.span_mask.any()):
            return (nothing, said) if return_outputs else nothing
        batch = self._batch(rollouts)
        found = self.objective.loss(batch, said, self.settings, inputs.get("num_items"))
        self._keep_metrics(found.metrics, self.objective.num_items(batch))
        loss = found.loss * self.accelerator.num_processes + nothing  # processes take the mean of their gradients
        return (loss, said) if return_outputs else loss

    def _keep_metrics(self, metrics: Mapping[str, torch.Tensor], num_items: Mapping[str, torch.Tensor]) -> None:
        values = torch.stack([value.float() for value in metrics.values()]).tolist()
        for name, value in zip(metrics, values, strict=True):
            self._update_metrics[_LABELS.get(name, f"policy/{name}")].append(value)
        count = num_items.get("tokens", num_items["spans"])
        self._kls.append((float(metrics["kl"]), float(count)))

    # -- evaluation and logs ------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of what was recorded since the last log."""
        if not self._is_evaluating:
            for name, values in self._metrics["train"].items():
                logs[name] = or_none(mean_of(values))  # type: ignore[assignment]
            self._metrics["train"].clear()
            logs["num_tokens"] = self._num_tokens
        super().log(logs, start_time)
        if self.accelerator.is_main_process:
            self.completion_log.show(self.state.global_step)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: members and policy differ in size, and most of the work is decoding."""
        return 0

    # -- what is kept -------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """See `DurableTrainer`: the rollout that is being learned from, and counters."""
        return {
            "buffer": self.buffer.state(),
            "num_tokens": self._num_tokens,
            "is_stopped": self._is_stopped,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `DurableTrainer`."""
        self.buffer.load(state["buffer"])
        self._num_tokens = state["num_tokens"]
        self._is_stopped = state["is_stopped"]
        self._metrics["train"] = defaultdict(list, {name: list(v) for name, v in state["metrics"].items()})
