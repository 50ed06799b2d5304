"""Rollouts of an ensemble, their rewards, and evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers import StopStringCriteria, Trainer
from transformers.trainer_utils import EvalLoopOutput

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import InputError
from hf_rlae.objectives import Objective
from hf_rlae.reports import TokenCounter, short_names
from hf_rlae.rewards.calls.resolve import RewardCalls
from hf_rlae.trainers.durable.finite import check_finite
from hf_rlae.trainers.rlae.checks import check_eval_dataset
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.member_watch import watch_members
from hf_rlae.trainers.rlae.reports import CompletionLog, check_metric_name, rollout_metrics
from hf_rlae.trainers.rlae.rollouts import Rollouts, Sampling, write_in_batches
from hf_rlae.trainers.rlae.row_noise import seed_of
from hf_rlae.trainers.rlae.row_records import RowRecords, joined
from hf_rlae.trainers.stop_strings import stop_criterion

EVAL_SEEDS, TRAIN_SEEDS = 0, 1


class RolloutTrainer(Trainer):
    """A mixin for trainers of policies: generates with an ensemble, calls reward functions, and evaluates.

    Source: ours.
    """

    args: RLAEConfig
    ensemble: EnsembleForCausalLM
    objective: Objective
    reward_calls: RewardCalls
    completion_log: CompletionLog
    prices: torch.Tensor | None
    _metrics: dict[str, dict[str, list[float]]]
    _reported: dict[str, list[float]]
    _evaluated: list[tuple[RowRecords, torch.Tensor]]
    _is_evaluating = False

    @cached_property
    def _stop(self) -> StopStringCriteria | None:
        return stop_criterion(self.args.stop_strings, self.ensemble.tokenizer)

    @property
    def policy(self) -> Any:
        """The policy, unwrapped from DDP."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def member_names(self) -> list[str]:
        """The names of the members in metrics."""
        return short_names(member.name for member in self.ensemble.members)

    def roll_out(self, inputs: list[dict[str, Any]], seeds: Sequence[int] | None, explores: bool) -> Rollouts:
        """Generates one completion per example. An override point.

        Args:
            inputs (`list[dict]`): examples, each with `prompt`; several samples of one prompt are equal examples.
            seeds (`Sequence[int]`, *optional*): one per row, for everything random; `None` is greedy decoding.
            explores (`bool`): whether the policy samples its actions, or gives its deterministic weights.

        Returns:
            `Rollouts`: one row per example.
        """
        args = self.args
        prompts = [example["prompt"] for example in inputs]
        sampling = Sampling(
            args.max_completion_length,
            None if seeds is None else tuple(seeds),
            explores,
            keeps_logps="member_logps" in self.objective.batch_axes and not self._is_evaluating,
            keeps_observations=not self._is_evaluating,
            observation_dtype=torch.bfloat16 if args.observation_dtype and not self._is_evaluating else None,
            options=args.generation_options,
            stop=self._stop,
        )
        was_training = self.policy.training
        self.policy.eval()
        try:
            with tqdm(
                total=args.max_completion_length * math.ceil(len(prompts) / (args.rollout_batch_size or len(prompts))),
                desc="rollout",
                unit="token",
                leave=False,
                disable=args.disable_tqdm or not self.is_local_process_zero(),
            ) as bar:
                size, streamer = args.rollout_batch_size, TokenCounter(bar.update)
                return write_in_batches(self.ensemble, self.policy, self._encode, prompts, sampling, size, streamer)
        finally:
            self.policy.train(was_training)

    def _encode(self, prompts: list[Any]) -> dict[str, torch.Tensor]:
        tokenizer = self.ensemble.tokenizer
        if isinstance(prompts[0], str):
            encoded = tokenizer(prompts, return_tensors="pt", padding=True)
            names = ["input_ids", "attention_mask"]
        else:
            options: Any = self.args.chat_template_kwargs or {}
            encoded = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **options)
            names = ["input_ids", "attention_mask", "member_input_ids", "member_attention_mask"]
        return {name: encoded[name].to(self.ensemble.device) for name in names}

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """Rewards of this process's completions, `(N, F)`; NaN where a function returned `None`. An override point.

        Args:
            inputs (`list[dict]`): the examples, whose columns reward functions receive.
            prompts, completions (`list`): strings, or messages.
            completion_ids_list (`list[list[int]]`): union ids, without padding.
        """
        return self.reward_calls(
            inputs,
            prompts,
            completions,
            completion_ids_list,
            trainer_state=self.state,
            log_extra=self.completion_log.log_extra,
            log_metric=self._log_metric,
        )

    def _log_metric(self, name: str, value: float) -> None:
        """Adds a value to a metric of a reward function, as in TRL."""
        check_metric_name(name)
        self._reported[name].append(float(value))

    @property
    def _mode(self) -> str:
        return "eval" if self._is_evaluating else "train"

    def _checked_rollouts(self, inputs: list[dict[str, Any]], seeds: Sequence[int] | None, explores: bool) -> Rollouts:
        """`roll_out`, with checks of members and policy."""
        step = self.state.global_step + 1
        with watch_members(self.ensemble.members, step):
            rollouts = self.roll_out(inputs, seeds, explores)
        if not isinstance(rollouts, Rollouts) or len(rollouts) != len(inputs):
            given = f"{len(rollouts)} rows" if isinstance(rollouts, Rollouts) else f"a {type(rollouts).__name__}"
            raise InputError(f"roll_out returned {given}; expected `Rollouts` with one row per example, {len(inputs)}")
        mask = rollouts.span_mask
        check_finite(rollouts.weights[mask], "weights", self.member_names, step)
        check_finite(rollouts.old_values[mask], "values of the policy", None, step)
        return rollouts

    def _score(self, inputs: list[dict[str, Any]], rollouts: Rollouts) -> torch.Tensor:
        """Rewards of the completions of all processes, `(N, F)`."""
        lengths = rollouts.completion_mask.sum(1).tolist()
        ids = [row[:length] for row, length in zip(rollouts.completion_ids.tolist(), lengths, strict=True)]
        given = self._calculate_rewards(inputs, rollouts.prompts, rollouts.completions, ids)
        rewards = self.reward_calls.check(given, len(rollouts))
        judged, step = rewards.masked_fill(rewards.isnan(), 0.0), self.state.global_step + 1
        check_finite(judged, "rewards", self.reward_calls.names, step)
        parts = self._gather_objects((rewards, self.completion_log.take(), dict(self._reported)))
        self._reported.clear()
        self.completion_log.gather([(extra, len(rows)) for rows, extra, _ in parts])
        for _, _, reported in parts:
            for name, values in reported.items():
                self._metrics[self._mode][name].extend(values)
        return torch.cat([rows for rows, _, _ in parts])

    def _records(self, rollouts: Rollouts) -> RowRecords:
        """The records of the completions of all processes; with texts only if they are logged."""
        names = self.member_names if self.args.log_completions else None
        return joined(self._gather_objects(RowRecords.of(rollouts, names)))

    def _gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        return gather_object([value])

    def _total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sums of numbers over all processes, the same in each of them."""
        first, *others = self._gather_objects(numbers.cpu())
        return sum(others, start=first)

    def _own(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of what there is per completion of all processes."""
        count = len(rows) // self.accelerator.num_processes
        return rows[self.accelerator.process_index * count :][:count]

    def _seeds(self, kind: int, number: int, rows: int, before: int = 0) -> list[int]:
        start = before + self.accelerator.process_index * rows
        return [seed_of(self.args.seed, kind, number, row) for row in range(start, start + rows)]

    # -- evaluation ---------------------------------------------------------------------------------------

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        before, self._is_evaluating = self._is_evaluating, True
        try:
            yield
        finally:
            self._is_evaluating = before

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`: the rewards of completions with deterministic weights.

        Raises:
            ConfigError: the dataset is empty, or has no column `prompt`.
            InputError: an empty prompt, or one that fills a member's context.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            check_eval_dataset(self.ensemble, self.args, eval_dataset)
        with self._evaluation():
            return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.predict`: `metrics` are those of an evaluation. Raises as `evaluate` does."""
        check_eval_dataset(self.ensemble, self.args, {"test_dataset": test_dataset})
        with self._evaluation():
            return super().predict(test_dataset, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """See `Trainer.evaluation_loop`; metrics are means over the whole dataset, each completion counted once."""
        self._evaluated.clear()
        self._metrics["eval"].clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        records = joined([part for part, _ in self._evaluated])
        rewards_per_func = torch.cat([rewards for _, rewards in self._evaluated])
        self._evaluated.clear()
        wanted = self.num_examples(dataloader) * self.args.num_generations_eval
        if len(records) > wanted:  # several processes repeat the first examples to fill the last batch
            records, rewards_per_func = records.first(wanted), rewards_per_func[:wanted]
            self.completion_log.keep(wanted)
        metrics = rollout_metrics(
            records, rewards_per_func, self.args.num_generations_eval, self.reward_calls, self.member_names, self.prices
        )
        metrics |= {name: mean_of(values) for name, values in self._metrics["eval"].items()}
        named: dict[str, Any] = {f"{metric_key_prefix}_{name}": or_none(value) for name, value in metrics.items()}
        output = output._replace(metrics={**(output.metrics or {}), **named})
        self.completion_log.add(records, rewards_per_func, self.reward_calls.names, metric_key_prefix)
        return output

    def _determine_best_metric(self, metrics: dict[str, Any], trial: Any) -> bool:
        """See `Trainer`; an evaluation without any judged completion is never the best."""
        name = str(self.args.metric_for_best_model).removeprefix("eval_")
        if f"eval_{name}" in metrics and metrics[f"eval_{name}"] is None:
            return False
        return super()._determine_best_metric(metrics, trial)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Generates one batch of completions and keeps their rewards."""
        seeds = None
        if self.args.eval_do_sample:
            seeds = self._seeds(EVAL_SEEDS, 0, len(inputs), before=sum(len(rows) for _, rows in self._evaluated))
        rollouts = self._checked_rollouts(inputs, seeds, explores=False)
        rewards_per_func = self._score(inputs, rollouts)
        self._evaluated.append((self._records(rollouts), rewards_per_func))
        return None, None, None


def mean_of(values: Sequence[float]) -> float:
    """The mean of all values that are not NaN; NaN if there are none."""
    valid = [value for value in values if not math.isnan(value)]
    return sum(valid) / len(valid) if valid else math.nan


def or_none(value: float) -> float | None:
    """`None` for NaN, as in TRL: some loggers do not accept NaN."""
    return None if math.isnan(value) else value
