"""`RLAETrainer`: reinforcement learning of the weights that an ensemble gives its members."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import disable_dropout_in_model, identity

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.files import write_whole
from hf_rlae.objectives import (
    gae,
    group_relative,
    objectives,
    scatter_spans,
    terminal_rewards,
    whiten,
)
from hf_rlae.policy import PolicyModel
from hf_rlae.trainer.checkpoints import DurableTrainer
from hf_rlae.trainer.configuration_rlae import RLAEConfig
from hf_rlae.trainer.finite import FiniteTrainer, check_finite
from hf_rlae.trainer.rlae_checks import check_datasets, check_policy, wrap_policy
from hf_rlae.trainer.rlae_reports import CompletionLog, RolloutProgress, policy_card, rollout_metrics
from hf_rlae.trainer.rlae_rewards import RewardCalls
from hf_rlae.trainer.rollouts import Rollouts, Sampling, concatenate, write_rollouts
from hf_rlae.trainer.row_noise import seed_of
from hf_rlae.trainer.sampling_order import EpochRepeatSampler

_EVAL, _TRAIN, _ORDER = 0, 1, 2
_CARD_VERSIONS = ("torch", "transformers", "trl", "datasets")


class RLAETrainer(DurableTrainer, FiniteTrainer, _BaseTrainer):
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
    loss_is_scaled_for_ga = True
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
        check_datasets(model, train_dataset, eval_dataset)
        self.ensemble = model
        self.objective = objectives[args.objective]()
        self.settings = args.objective_settings()
        policy = wrap_policy(model, peft_config)
        if args.disable_dropout:
            disable_dropout_in_model(policy)
        self.reward_calls = RewardCalls(
            reward_funcs, args.reward_weights, args.reward_timeout, reward_processing_classes
        )
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._step = 0
        self._num_tokens = 0
        self._buffer: Rollouts | None = None
        self._order: list[int] = []
        self._is_stopped = False
        self._kls: list[float] = []
        self._eval_batches = 0
        self.completion_log = CompletionLog(args)
        super().__init__(
            model=policy,
            args=args,
            data_collator=identity,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model.add_model_tags(self._tag_names)
        if all(not member.has_device_map for member in model.members):
            model.to(self.accelerator.device)  # type: ignore[arg-type]

    @property
    def policy(self) -> Any:
        """The policy, without wrappers of several processes."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def member_names(self) -> list[str]:
        """How metrics call the members: the last part of their names, numbered where that is not unique."""
        names = [str(member.name).rstrip("/").split("/")[-1] for member in self.ensemble.members]
        return [name if names.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(names)]

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """See `FiniteTrainer`."""
        return {"policy": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}

    # -- data ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Batches of prompts for whole rollouts; each comes as often as its texts are used."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        return EpochRepeatSampler(
            self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.args.num_generations,
            batch_size=self.args.generation_batch_size // self.args.num_generations,
            repeat_count=self.args.num_iterations * self.args.steps_per_generation,
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

    # -- rollouts -----------------------------------------------------------------------------------------

    def roll_out(self, inputs: list[dict[str, Any]], seeds: Sequence[int] | None, explores: bool) -> Rollouts:
        """Writes one text for each example. An override point.

        Args:
            inputs (`list[dict]`): examples, each with `prompt`; samples of one prompt are several equal examples.
            seeds (`Sequence[int]`, *optional*): one a row, from which everything random is drawn; `None` for the
                likeliest tokens.
            explores (`bool`): whether the policy draws its actions, or acts with its deterministic weights.

        Returns:
            `Rollouts`: one row an example.
        """
        args = self.args
        prompts = [example["prompt"] for example in inputs]
        sampling = Sampling(
            args.max_completion_length,
            None if seeds is None else tuple(seeds),
            explores,
            args.temperature,
            args.top_p,
            args.top_k,
            keeps_logps="member_logps" in self.objective.batch_axes and self.model.training,
        )
        was_training = self.policy.training
        self.policy.eval()
        try:
            with RolloutProgress(args, self.is_local_process_zero()) as progress:
                return write_rollouts(self.ensemble, self.policy, self._encode(prompts), prompts, sampling, progress)
        finally:
            self.policy.train(was_training)

    def _encode(self, prompts: list[Any]) -> dict[str, torch.Tensor]:
        tokenizer = self.ensemble.tokenizer
        if isinstance(prompts[0], str):
            encoded = tokenizer(prompts, return_tensors="pt", padding=True)
            names = ("input_ids", "attention_mask")
        else:
            encoded = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)
            names = ("input_ids", "attention_mask", "member_input_ids", "member_attention_mask")
        return {name: encoded[name].to(self.ensemble.device) for name in names}

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """Rewards of shape `(N, F)`, of this process's texts; NaN where a function returned `None`. An override point.

        Args:
            inputs (`list[dict]`): the examples, whose columns reward functions get.
            prompts, completions (`list`): strings, or messages.
            completion_ids_list (`list[list[int]]`): union ids, without padding.
        """
        metrics = self._metrics[self._mode]
        return self.reward_calls(
            inputs,
            prompts,
            completions,
            completion_ids_list,
            trainer_state=self.state,
            log_extra=self.completion_log.log_extra,
            log_metric=lambda name, value: metrics[name].append(float(value)),
        )

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _score(self, inputs: list[dict[str, Any]], rollouts: Rollouts) -> torch.Tensor:
        """Rewards of all processes' texts, `(N, F)`."""
        lengths = rollouts.completion_mask.sum(1).tolist()
        ids = [row[:length] for row, length in zip(rollouts.completion_ids.tolist(), lengths, strict=True)]
        rewards = self._calculate_rewards(inputs, rollouts.prompts, rollouts.completions, ids)
        rewards = rewards.to(dtype=torch.float32, device="cpu")
        if bool(rewards.isinf().any()):
            check_finite(
                rewards.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf),
                "rewards",
                self.reward_calls.names,
                self.state.global_step,
            )
        return torch.cat(self._gathered(rewards))

    def _gathered(self, value: Any) -> list[Any]:
        """What every process has, in their order."""
        return gather_object([value]) if self.accelerator.num_processes > 1 else [value]

    def _seeds(self, kind: int, number: int, rows: int) -> list[int]:
        start = self.accelerator.process_index * rows
        return [seed_of(self.args.seed, kind, number, row) for row in range(start, start + rows)]

    def _fill_buffer(self, inputs: list[dict[str, Any]], number: int) -> None:
        """Rollout `number`: texts, rewards and advantages of all processes."""
        rollouts = self.roll_out(inputs, self._seeds(_TRAIN, number, len(inputs)), self.objective.explores)
        self._check_rollouts(rollouts)
        rewards_per_func = self._score(inputs, rollouts)
        rollouts = concatenate(self._gathered(rollouts.to("cpu")))
        rewards = self.reward_calls.weighted(rewards_per_func)
        rollouts.advantages, rollouts.returns = self._advantages(rollouts, rewards)
        rollouts.span_mask = rollouts.span_mask & ~rewards.isnan()[:, None]
        rollouts.completion_mask = rollouts.completion_mask & ~rewards.isnan()[:, None]
        self._num_tokens += int(rollouts.completion_mask.sum())
        self._record(rollouts, rewards_per_func, rewards, self.args.num_generations)
        self._buffer = rollouts

    def _check_rollouts(self, rollouts: Rollouts) -> None:
        step = self.state.global_step
        check_finite(rollouts.weights[rollouts.span_mask], "weights", self.member_names, step)
        logps = rollouts.member_logps
        if logps is not None:
            run = rollouts.weights[rollouts.span_mask].new_tensor(0.0).expand_as(logps)
            values = torch.where(logps.isnan() | ~rollouts.completion_mask[..., None], run, logps)
            check_finite(values, "log-probabilities", self.member_names, step, allow_minus_inf=True)

    def _advantages(self, rollouts: Rollouts, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        args = self.args
        if args.advantages == "group_relative":
            return group_relative(rewards, args.num_generations, args.scale_rewards), None
        mask = rollouts.span_mask & ~rewards.isnan()[:, None]
        paid = terminal_rewards(rewards.nan_to_num(), mask)
        advantages, returns = gae(paid, rollouts.old_values, mask, args.gamma, args.lam)
        return (whiten(advantages, mask) if args.whiten_advantages else advantages), returns

    def _record(
        self, rollouts: Rollouts, rewards_per_func: torch.Tensor, rewards: torch.Tensor, num_generations: int
    ) -> None:
        """Metrics and the table of texts, from what all processes wrote."""
        metrics = rollout_metrics(
            rollouts,
            rewards_per_func,
            rewards,
            num_generations,
            self.reward_calls.names,
            self.member_names,
            self.args.max_completion_length,
        )
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)
        self.completion_log.add(rollouts, rewards_per_func, self.reward_calls.names, self.member_names)

    # -- updates ------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: Any) -> Any:
        """This process's micro-batch of the buffer, after a new rollout if one is due; `inputs` if it is one."""
        if self._mode == "eval" or isinstance(inputs, dict):
            return inputs
        steps = self.args.steps_per_generation
        per_rollout = steps * self.args.num_iterations
        number, within = divmod(self._step, per_rollout)
        if within == 0 or self._buffer is None:
            self._fill_buffer(inputs, number)
            self._is_stopped = False
        assert self._buffer is not None
        iteration, step = divmod(within, steps)
        order = torch.Generator().manual_seed(seed_of(self.args.seed, _ORDER, number, iteration))
        self._order = torch.randperm(len(self._buffer), generator=order).tolist()
        size = len(self._buffer) // steps // self.accelerator.num_processes
        start = (step * self.accelerator.num_processes + self.accelerator.process_index) * size
        batch = self._buffer.select(self._order[start : start + size]).to(self.accelerator.device)
        num_items = self._items_of_update(step)
        return {"rollouts": batch, "num_items": num_items}

    def _items_of_update(self, step: int) -> dict[str, torch.Tensor]:
        """How many sequences, spans and tokens the whole update counts: of all its micro-batches and processes."""
        assert self._buffer is not None
        accumulated = self.args.gradient_accumulation_steps
        size = len(self._buffer) // self.args.steps_per_generation
        start = step // accumulated * accumulated * size
        update = self._buffer.select(self._order[start : start + accumulated * size])
        return self.objective.num_items(self._batch(update))

    def _batch(self, rollouts: Rollouts) -> dict[str, torch.Tensor]:
        """What the objective takes from rollouts."""
        tensors = rollouts.tensors()
        return {name: tensors[name] for name in self.objective.batch_axes if name in tensors}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; nothing is learned from it once the KL of this rollout has passed `target_kl`."""
        model.train()
        prepared = self._prepare_inputs(inputs)
        if self._is_stopped:
            loss = torch.zeros((), device=self.accelerator.device)
        else:
            loss = super().training_step(model, prepared, num_items_in_batch)
        self._step += 1
        if self._step % self.args.gradient_accumulation_steps == 0:
            self._look_at_kl()
        return loss

    def _look_at_kl(self) -> None:
        kls, self._kls = self._kls, []
        if self._is_stopped:
            self._metrics["train"]["policy/stopped"].append(1.0)
            return
        if not kls or self.args.target_kl is None:
            return
        every = [kl for part in self._gathered(kls) for kl in part]
        self._is_stopped = sum(every) / len(every) > self.args.target_kl
        self._metrics["train"]["policy/stopped"].append(0.0)

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
        if not bool(mask.any()):
            loss = sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad) * 0.0
            return (loss, {}) if return_outputs else loss
        seen = {name: tensor[mask] for name, tensor in rollouts.observation.items()}
        actions = None if rollouts.actions is None else rollouts.actions[mask]
        output = model(seen, actions=actions)
        names = ("weights", "log_probs", "entropies", "values")
        said = {name: getattr(output, name) for name in names if getattr(output, name) is not None}
        said = {name: scatter_spans(value, mask) for name, value in said.items() if name in self.objective.output_axes}
        found = self.objective.loss(self._batch(rollouts), said, self.settings, inputs.get("num_items"))
        self._keep_metrics(found.metrics)
        loss = found.loss * self.accelerator.num_processes  # several processes take the mean of their gradients
        return (loss, said) if return_outputs else loss

    def _keep_metrics(self, metrics: Mapping[str, torch.Tensor]) -> None:
        labels = {
            "clip_ratio": "clip_ratio",
            "value_loss": "value/loss",
            "value_clip_ratio": "value/clip_ratio",
            "explained_variance": "value/explained_variance",
        }
        values = torch.stack([value.float() for value in metrics.values()]).tolist()
        for name, value in zip(metrics, values, strict=True):
            self._metrics["train"][labels.get(name, f"policy/{name}")].append(value)
            if name == "kl":
                self._kls.append(value)

    # -- evaluation and logs ------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`: rewards of texts that are written with deterministic weights."""
        self._eval_batches = 0
        return super().evaluate(*args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Writes one batch's texts and records their rewards."""
        seeds = self._seeds(_EVAL, self._eval_batches, len(inputs)) if self.args.eval_do_sample else None
        self._eval_batches += 1
        rollouts = self.roll_out(inputs, seeds, explores=False)
        rewards_per_func = self._score(inputs, rollouts)
        rollouts = concatenate(self._gathered(rollouts.to("cpu")))
        self._record(
            rollouts, rewards_per_func, self.reward_calls.weighted(rewards_per_func), self.args.num_generations_eval
        )
        return None, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of what was recorded since the last log."""
        mode = self._mode
        prefix = "eval_" if mode == "eval" else ""
        for name, values in self._metrics[mode].items():
            valid = [value for value in values if not math.isnan(value)]
            logs[f"{prefix}{name}"] = sum(valid) / len(valid) if valid else None  # type: ignore[assignment]
        if mode == "train":
            logs["num_tokens"] = self._num_tokens
        self._metrics[mode].clear()
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
            "step": self._step,
            "num_tokens": self._num_tokens,
            "is_stopped": self._is_stopped,
            "kls": list(self._kls),
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "buffer": None if self._buffer is None else self._buffer.state(),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `DurableTrainer`."""
        self._step = state["step"]
        self._num_tokens = state["num_tokens"]
        self._is_stopped = state["is_stopped"]
        self._kls = list(state["kls"])
        self._metrics["train"] = defaultdict(list, {name: list(v) for name, v in state["metrics"].items()})
        self._buffer = None if state["buffer"] is None else Rollouts.from_state(state["buffer"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy, to be loaded by `PolicyModel.from_pretrained`; a LoRA adapter is merged in.

        Checkpoints keep the adapter as it is.
        """
        policy = self.policy
        if _internal_call or isinstance(policy, PolicyModel):
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            copy.deepcopy(policy).merge_and_unload().save_pretrained(output_dir or self.args.output_dir)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: what the policy weighs, how it was trained, how it is loaded."""
        if not self.is_world_process_zero():
            return
        config = self.policy.config
        facts = {
            "name": model_name or os.path.basename(os.path.abspath(self.args.output_dir)),
            "members": [str(member.name) for member in self.ensemble.members],
            "objective": self.args.objective,
            "observation": config.observation,
            "actor": config.actor,
            "span_length": config.span_length,
            "steps": self.state.global_step,
            "tags": {*self._tag_names, *([tags] if isinstance(tags, str) else tags or ())},
            "dataset": dataset_name,
            "versions": {name: importlib.metadata.version(name) for name in _CARD_VERSIONS},
            "paper": self._paper,
        }
        os.makedirs(self.args.output_dir, exist_ok=True)
        write_whole(os.path.join(self.args.output_dir, "README.md"), policy_card(facts))
