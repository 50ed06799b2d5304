"""`RLAETrainer`: reinforcement learning of the weights of an ensemble's members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import identity

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.objectives import gae, group_relative, objectives, scatter_spans, terminal_rewards, whiten
from hf_rlae.objectives.multi_objective import normalized_sum
from hf_rlae.rewards.calls.resolve import RewardCalls
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.constraints import RewardConstraints
from hf_rlae.trainers.durable.finite import FiniteTrainer
from hf_rlae.trainers.durable.prompt_order import EpochRepeatSampler
from hf_rlae.trainers.rlae.card import PolicyPublisher
from hf_rlae.trainers.rlae.checks import (
    check_arguments,
    check_policy,
    check_policy_adapter,
    check_reward_columns,
    check_rlae_datasets,
)
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.member_costs import member_prices, span_costs
from hf_rlae.trainers.rlae.policy_preparation import prepare_policy
from hf_rlae.trainers.rlae.reports import CompletionLog, rollout_metrics
from hf_rlae.trainers.rlae.resuming import ResumablePolicy
from hf_rlae.trainers.rlae.rollout_buffer import RolloutBuffer
from hf_rlae.trainers.rlae.rollout_trainer import TRAIN_SEEDS, RolloutTrainer, mean_of, or_none
from hf_rlae.trainers.rlae.rollouts import Rollouts
from hf_rlae.trainers.rlae.row_records import RowRecords
from hf_rlae.trainers.rlae.value_scale import ValueScale

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from hf_rlae.trainers.rewards import RewardFunc

_LABELS = {
    "clip_ratio": "clip_ratio",
    "value_loss": "value/loss",
    "value_clip_ratio": "value/clip_ratio",
    "explained_variance": "value/explained_variance",
}
"""Names in logs of the objectives' metrics; all others are logged as `policy/` and their name."""


class RLAETrainer(PolicyPublisher, RolloutTrainer, ResumablePolicy, FiniteTrainer, _BaseTrainer):
    """Trains the policy of an ensemble on rewards for completions; the members stay frozen.

    The ensemble generates `num_generations` completions per prompt. At the first token of each span the policy gives
    weights for the sequence so far. Each completion receives one reward, at its end. One of three objectives then
    updates the policy: `ppo`, `mappo` or `mixture` (see [`RLAEConfig`]).

    `trainer.model` is the policy: optimizer, checkpoints and DDP know nothing else. `trainer.ensemble` is the ensemble.

    Every row has its own random numbers. A rollout does not depend on its batches and on the number of processes, and a
    resumed run learns what an uninterrupted one learns. Observations stay in the process that generated them: each
    process shuffles its own completions.

    Override points: `roll_out` (completions), `_calculate_rewards` (rewards), `compute_loss` (the update).

    Source: RLAE (arXiv 2506.00439).

    Args:
        model (`EnsembleForCausalLM`): whose policy is a [`PolicyModel`].
        reward_funcs (`str`, callable, `PreTrainedModel` or a list of these): a registered name (see
            `hf_rlae.rewards`), a function in TRL's form, sync or async, or a reward model.
        args (`RLAEConfig`, *optional*): the configuration.
        train_dataset (`datasets.Dataset`): with a column `prompt`, strings or messages; reward functions receive
            all other columns.
        eval_dataset (`datasets.Dataset` or `dict` of these, *optional*): the same.
        processing_class (*optional*): `None` or `model.tokenizer`; the members have their own tokenizers.
        reward_processing_classes (*optional*): tokenizers of reward models, one per reward
            function.
        callbacks, optimizers: as in transformers.
        quantization_config: refused; members are quantised when they are loaded.
        peft_config (`peft.PeftConfig`, *optional*): LoRA on the policy's encoder; its heads are fully trained.
        tools, rollout_func, environment_factory: refused; they are arguments of TRL's `GRPOTrainer`, whose order
            this trainer keeps.

    Raises:
        ConfigError: for example an ensemble without a `PolicyModel`, an actor that the objective cannot train, an
            empty dataset, or no column `prompt`.
        InputError: a prompt that fills a member's context.
        RewardError: a reward function that does not return one number or `None` per completion, or exceeds its time
            limit.
        NonFiniteError: NaN or infinity in rewards, members' logits, gradients or parameters.
    """

    _tag_names = ["rlae", "trl", "hf_rlae"]  # noqa: RUF012
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
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        args: RLAEConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        quantization_config: None = None,
        peft_config: PeftConfig | None = None,
        tools: None = None,
        rollout_func: None = None,
        environment_factory: None = None,
    ) -> None:
        args = RLAEConfig("rlae-policy") if args is None else args
        check_policy(model, args)
        check_arguments(
            model,
            processing_class,
            quantization_config=quantization_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        check_policy_adapter(model, peft_config)
        check_rlae_datasets(model, args, train_dataset, eval_dataset)
        self.ensemble = model
        self.objective = objectives[args.objective]()
        self.settings = args.objective_settings()
        self.reward_calls = RewardCalls(
            reward_funcs,
            args.reward_weights,
            args.reward_timeout,
            reward_processing_classes,
            args.chat_template_kwargs,  # type: ignore[arg-type]  # no string after __post_init__
        )
        self.constraints = RewardConstraints(args, self.reward_calls.names, args.reward_weights)
        self.reward_calls.weights = self.constraints.main_weights
        if type(self)._calculate_rewards is RolloutTrainer._calculate_rewards:
            check_reward_columns(self.reward_calls.required_columns, train_dataset, eval_dataset)
        self.prices = member_prices(model, args)
        policy = prepare_policy(model, args, peft_config)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._update_metrics: dict[str, list[float]] = defaultdict(list)
        self._kls: list[tuple[float, float]] = []
        self._num_tokens = 0
        self._is_stopped = False
        self.value_scale = ValueScale()
        self._num_items: dict[str, torch.Tensor] = {}
        self._evaluated: list[tuple[RowRecords, torch.Tensor]] = []
        self._reported: dict[str, list[float]] = defaultdict(list)
        self.completion_log = CompletionLog(args)
        if args.n_gpu > 1:  # no DataParallel: members may be on several devices, and the policy is on one
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
            self.accelerator.process_index,
        )
        for member in model.members:
            member.prepare()
            member.wrapper.eval()
        if all(not member.has_device_map for member in model.members):
            model.to(self.accelerator.device)  # type: ignore[arg-type]

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """See `FiniteTrainer`."""
        return {"policy": [parameter for parameter in self.policy.parameters() if parameter.requires_grad]}

    # -- data ---------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        """With `remove_unused_columns=True`, keeps prompts and the columns that reward functions name as arguments."""
        if self._signature_columns is None:
            self._signature_columns = sorted({"prompt", *self.reward_calls.columns})  # type: ignore[assignment]

    def get_train_dataloader(self) -> Any:
        """Batches of row numbers of whole rollouts, one batch for each micro-batch of a rollout.

        Rows of the dataset are read once per rollout, not for every micro-batch of it.
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
        return EpochRepeatSampler.of_rollouts(self, dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochRepeatSampler:
        return EpochRepeatSampler(
            eval_dataset,
            mini_repeat_count=self.args.num_generations_eval,
            shuffle=False,
            seed=self.args.seed,
            epoch=lambda: 0,
        )

    def _fill_buffer(self, inputs: list[dict[str, Any]]) -> None:
        """Fills the buffer with this process's part of the next rollout; rewards are those of all processes."""
        seeds = self._seeds(TRAIN_SEEDS, self.buffer.number, len(inputs))
        rollouts = self._checked_rollouts(inputs, seeds, self.objective.explores).to("cpu")
        rewards_per_func = self._score(inputs, rollouts)
        metrics = self.constraints.update(rewards_per_func)
        rewards = self._learned_rewards(rewards_per_func)
        rollouts.advantages, rollouts.returns = self._advantages(rollouts, rewards)
        records = self._records(rollouts)
        self._num_tokens += int(records.lengths.sum())
        args, calls, members = self.args, self.reward_calls, self.member_names
        metrics |= rollout_metrics(records, rewards_per_func, args.num_generations, calls, members, self.prices)
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        self.completion_log.add(records, rewards_per_func, calls.names)
        is_judged = ~self._own(rewards).isnan()[:, None]
        rollouts.span_mask = rollouts.span_mask & is_judged
        rollouts.completion_mask = rollouts.completion_mask & is_judged
        self.buffer.rollouts = rollouts
        self._is_stopped = False

    def _learned_rewards(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        """One reward per completion, `(N,)`, NaN where no function could judge."""
        weights, args = self.constraints.weights, self.args
        if args.multi_objective_aggregation == "sum_then_normalize":
            return total_rewards(rewards_per_func, weights)
        group = args.num_generations if args.advantages == "group_relative" else None
        return normalized_sum(rewards_per_func, weights, group)

    def _advantages(self, rollouts: Rollouts, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Advantages and returns of this process's rollouts, from the rewards of all processes.

        Returns are in the critic's unit (see [`ValueScale`]), as its values are.
        """
        args, own, costs = self.args, self._own(rewards), span_costs(rollouts, self.prices)
        if self.prices is not None:
            rewards = rewards - torch.cat(self._gather_objects(costs.sum(1)))
        if args.advantages == "group_relative":  # the completions of a prompt may be in two processes
            size, scale = args.num_generations, args.scale_rewards
            if args.multi_objective_aggregation == "normalize_then_sum":  # groups were compared before the sum
                size, scale = len(rewards), "batch"
            return self._own(group_relative(rewards, size, scale)), None
        self.value_scale.add(rewards)
        values = self.value_scale.in_rewards(rollouts.old_values)
        mask = rollouts.span_mask & ~own.isnan()[:, None]
        span_rewards = terminal_rewards(own.nan_to_num(), mask) - costs
        advantages, returns = gae(span_rewards, values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, total=self._total)
        return advantages, self.value_scale.normalised(returns)

    # -- updates ------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: Any) -> Any:
        """This process's micro-batch of the buffer, after a new rollout if one is due.

        In training `inputs` are row numbers of the dataset, one per completion of the rollout; a micro-batch (a `dict`)
        and the examples of an evaluation are returned unchanged.
        """
        if self._is_evaluating or isinstance(inputs, dict):
            return inputs
        if self.buffer.is_due:
            self._fill_buffer(self._train_rows.__getitems__(inputs))
        if self.buffer.is_between_updates:
            own = self.objective.num_items(self.buffer.update(self.objective.batch_axes))
            totals = self._total(torch.stack(list(own.values())))
            self._num_items = dict(zip(own, totals, strict=True))
        return {"rollouts": self.buffer.micro_batch().to(self.accelerator.device), "num_items": self._num_items}

    def _batch(self, rollouts: Rollouts) -> dict[str, torch.Tensor]:
        """The tensors of rollouts that the objective uses."""
        tensors, scale = rollouts.tensors(), self.ensemble.engine.weight_scale
        if scale is not None:
            tensors["weight_scale"] = scale.to(rollouts.weights.device)
        return {name: tensors[name] for name in self.objective.batch_axes if name in tensors}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch. It is skipped once the KL of this rollout exceeds `target_kl`.

        It is also skipped in an update in which no completion could be judged.
        """
        model.train()
        prepared = self._prepare_inputs(inputs)
        if self._is_stopped or not int(prepared["num_items"]["spans"]):
            loss = torch.zeros((), device=self.accelerator.device)
            if self.accelerator.scaler is not None:  # it raises in an update without any gradient
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
        """Collects the metrics of an update's micro-batches in all processes, and compares the KL with `target_kl`."""
        parts = self._gather_objects((dict(self._update_metrics), list(self._kls)))
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
            model (`nn.Module`): the policy, possibly wrapped by DDP.
            inputs (`dict`): `rollouts` ([`Rollouts`], one row per completion) and `num_items`, the counts of the whole
                update.
            return_outputs (`bool`, defaults to `False`): whether to return the policy's output as well.
            num_items_in_batch: not used; see `num_items`.
        """
        rollouts: Rollouts = inputs["rollouts"]
        output, zero = self._policy_output(model, rollouts)
        if not bool(rollouts.span_mask.any()):
            return (zero, output) if return_outputs else zero
        batch = self._batch(rollouts)
        found = self.objective.loss(batch, output, self.settings, inputs.get("num_items"))
        self._keep_metrics(found.metrics, self.objective.num_items(batch))
        loss = found.loss * self.accelerator.num_processes + zero  # DDP takes the mean of the processes' gradients
        return (loss, output) if return_outputs else loss

    def _policy_output(self, model: nn.Module, rollouts: Rollouts) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The outputs of the policy that the objective uses, `(N, S, ...)`, and a 0 that depends on all outputs.

        The 0 is part of the loss, so that the same parameters have gradients in all processes.
        """
        mask = rollouts.span_mask
        if not bool(mask.any()):  # other processes have spans, and DDP waits for gradients of this one
            mask = torch.zeros_like(mask)
            mask[0, 0] = True
        observation = {name: tensor[mask] for name, tensor in rollouts.observation.items()}
        actions = None if rollouts.actions is None else rollouts.actions[mask]
        output = model(observation, actions=actions)
        names = {"weights": "weights", "log_probs": "log_probs", "entropies": "entropies", "state_values": "values"}
        found = {used_as: output[name] for name, used_as in names.items() if name in output}
        zero = sum(value.sum() for value in found.values()) * 0.0
        used = {name: scatter_spans(value, mask) for name, value in found.items() if name in self.objective.output_axes}
        return used, zero

    def _keep_metrics(self, metrics: Mapping[str, torch.Tensor], num_items: Mapping[str, torch.Tensor]) -> None:
        values = torch.stack([value.float() for value in metrics.values()]).tolist()
        for name, value in zip(metrics, values, strict=True):
            self._update_metrics[_LABELS.get(name, f"policy/{name}")].append(value)
        count = num_items.get("tokens", num_items["spans"])
        self._kls.append((float(metrics["kl"]), float(count)))

    # -- evaluation and logs ------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the metrics since the last log."""
        if not self._is_evaluating:
            for name, values in self._metrics["train"].items():
                logs[name] = or_none(mean_of(values))  # type: ignore[assignment]
            self._metrics["train"].clear()
            logs["num_tokens"] = self._num_tokens
        super().log(logs, start_time)
        if self.accelerator.is_main_process:
            self.completion_log.show(self.state.global_step)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: members and policy differ in size, and most operations are those of generation."""
        return 0
