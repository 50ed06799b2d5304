"""What is told of rollouts: metrics, tables of texts, and progress."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers.generation.streamers import BaseStreamer
from trl.trainer.utils import print_prompt_completions_sample

from hf_rlae.files import write_whole
from hf_rlae.objectives.mixture import weight_entropies
from hf_rlae.trainers.rlae.rollouts import Rollouts


def rollout_metrics(
    rollouts: Rollouts,
    rewards_per_func: torch.Tensor,
    rewards: torch.Tensor,
    num_generations: int,
    reward_names: Sequence[str],
    member_names: Sequence[str],
) -> dict[str, float]:
    """Metrics of one rollout of all processes, under TRL's names where TRL has one.

    Args:
        rollouts (`Rollouts`): N rows; samples of one prompt are next to each other.
        rewards_per_func (`torch.Tensor` of shape `(N, F)`): NaN for what could not be judged.
        rewards (`torch.Tensor` of shape `(N,)`): the weighted sums.
        num_generations (`int`): G.
        reward_names, member_names (`Sequence[str]`): F and M names.

    Returns:
        `dict[str, float]`: NaN where nothing could be judged.
    """
    lengths = rollouts.completion_mask.sum(1).float()
    found = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((~rollouts.is_ended).float().mean()),
        "reward": _mean(rewards),
        "reward_std": _std(rewards),
        "rewards/unjudged_ratio": float(rewards.isnan().float().mean()),
    }
    if num_generations > 1:
        groups = rewards.view(-1, num_generations)
        spread = groups.nan_to_num(nan=torch.inf).amin(1) == groups.nan_to_num(nan=-torch.inf).amax(1)
        found["frac_reward_zero_std"] = float(spread.float().mean())
    for index, name in enumerate(reward_names):
        found[f"rewards/{name}/mean"] = _mean(rewards_per_func[:, index])
        found[f"rewards/{name}/std"] = _std(rewards_per_func[:, index])
    weights = rollouts.weights[rollouts.span_mask]
    if len(weights):
        found["weights/entropy"] = float(weight_entropies(weights).mean())
        for index, name in enumerate(member_names):
            found[f"weights/{name}/mean"] = float(weights[:, index].mean())
    return found


def _mean(values: torch.Tensor) -> float:
    kept = values[~values.isnan()]
    return float(kept.mean()) if len(kept) else float("nan")


def _std(values: torch.Tensor) -> float:
    kept = values[~values.isnan()]
    return float(kept.std()) if len(kept) > 1 else float("nan")


class CompletionLog:
    """The texts of the newest rollout with rewards, advantages and weights, shown and kept as tables.

    Args:
        args (`RLAEConfig`): `log_completions`, `num_completions_to_print` and `output_dir`.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self.extra: dict[str, list[Any]] = defaultdict(list)
        self._own: dict[str, list[Any]] = defaultdict(list)
        self._kind = ""
        self._table: dict[str, Any] = {}
        self._extra: dict[str, list[Any]] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """What reward functions may call, as in TRL, to add a column."""
        self._own[column].extend(values)

    def taken(self) -> dict[str, list[Any]]:
        """The columns of this process's newest texts, which are forgotten."""
        own, self._own = self._own, defaultdict(list)
        return dict(own)

    def gather(self, parts: Sequence[tuple[dict[str, list[Any]], int]]) -> None:
        """Adds what each process logged for its texts; `None` where one did not.

        Args:
            parts: columns, and the number of texts, of each process in their order.
        """
        for column in sorted({column for columns, _ in parts for column in columns}):
            for columns, count in parts:
                self.extra[column].extend(columns.get(column, [None] * count))

    def keep(self, count: int) -> None:
        """Leaves out what was logged for texts after the first `count`."""
        for values in self.extra.values():
            del values[count:]

    def add(
        self,
        rollouts: Rollouts,
        rewards_per_func: torch.Tensor,
        reward_names: Sequence[str],
        member_names: Sequence[str],
        kind: str = "",
    ) -> None:
        """Keeps a rollout until it is shown.

        Args:
            rollouts (`Rollouts`): N rows.
            rewards_per_func (`torch.Tensor` of shape `(N, F)`): NaN for what could not be judged.
            reward_names, member_names (`Sequence[str]`): F and M names.
            kind (`str`, defaults to `""`): of an evaluation, such as `"eval"`; for the file's name.
        """
        extra, self.extra = self.extra, defaultdict(list)
        if not self.args.log_completions:
            return
        self._kind = f"{kind}_" if kind else ""
        advantages = rollouts.advantages
        if advantages is not None and advantages.dim() == 2:
            counts = rollouts.span_mask.sum(1).clamp(min=1)
            advantages = (advantages * rollouts.span_mask).sum(1) / counts
        self._table = {
            "prompt": rollouts.prompts,
            "completion": rollouts.completions,
            "rewards": {name: rewards_per_func[:, index].tolist() for index, name in enumerate(reward_names)},
            "advantage": None if advantages is None else advantages.tolist(),
        }
        weights = [
            "\n".join(
                f"{name} " + " ".join(f"{w:.2f}" for w in row[kept][:, index].tolist())
                for index, name in enumerate(member_names)
            )
            for row, kept in zip(rollouts.weights, rollouts.span_mask, strict=True)
        ]
        whole = {name: values for name, values in extra.items() if len(values) == len(rollouts)}
        self._extra = {"weights": weights, **whole}

    def show(self, step: int) -> None:
        """Prints the newest texts and writes them to `completions/completions_STEP.parquet` in the output folder.

        Those of an evaluation go to `completions_eval_STEP.parquet`.
        """
        if not self._table:
            return
        table, extra = self._table, self._extra
        self._table = {}
        print_prompt_completions_sample(
            table["prompt"],
            table["completion"],
            table["rewards"],
            table["advantage"],
            step,
            self.args.num_completions_to_print,
            extra=extra,
        )
        columns = {
            "step": [step] * len(table["prompt"]),
            "prompt": table["prompt"],
            "completion": table["completion"],
            **table["rewards"],
            **extra,
        }
        if table["advantage"] is not None:
            columns["advantage"] = table["advantage"]
        folder = os.path.join(self.args.output_dir, "completions")
        os.makedirs(folder, exist_ok=True)
        buffer = io.BytesIO()
        pd.DataFrame(columns).to_parquet(buffer)
        write_whole(os.path.join(folder, f"completions_{self._kind}{step:05d}.parquet"), buffer.getvalue())


class RolloutProgress(BaseStreamer):
    """A progress bar over the tokens of a rollout; gone when the rollout is done.

    Args:
        args (`RLAEConfig`): `disable_tqdm` and `max_completion_length`.
        is_shown (`bool`): whether this process shows it.
    """

    def __init__(self, args: Any, is_shown: bool) -> None:
        self._bar = tqdm(
            total=args.max_completion_length,
            desc="rollout",
            unit="token",
            leave=False,
            disable=args.disable_tqdm or not is_shown,
        )
        self._is_prompt = True

    def __enter__(self) -> RolloutProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompts first, then one token a row."""
        if not self._is_prompt:
            self._bar.update()
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is held back."""
