"""Reports on rollouts: metrics and tables of completions."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from trl.trainer.utils import nanstd, print_prompt_completions_sample

from hf_rlae.errors import RewardError
from hf_rlae.files import write_whole
from hf_rlae.rewards.calls.resolve import RewardCalls
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.rlae.row_records import RowRecords

_OWN_METRICS = (
    "clip_ratio", "epoch", "frac_reward_zero_std", "grad_norm", "learning_rate", "loss", "member_cost", "net_reward",
    "num_tokens", "reward", "reward_std",
)  # fmt: skip
_OWN_GROUPS = ("completions/", "constraints/", "member_tokens/", "policy/", "rewards/", "value/", "weights/")


def rollout_metrics(
    records: RowRecords,
    rewards_per_func: torch.Tensor,
    num_generations: int,
    reward_calls: RewardCalls,
    member_names: Sequence[str],
    prices: torch.Tensor | None = None,
) -> dict[str, float]:
    """Metrics of one rollout of all processes, under TRL's names where TRL has one.

    Args:
        records (`RowRecords`): N rows; completions of one prompt are adjacent.
        rewards_per_func (`torch.Tensor` of shape `(N, F)`): NaN where a function could not judge.
        num_generations (`int`): G.
        reward_calls (`RewardCalls`): has the names and weights of the functions.
        member_names (`Sequence[str]`): M names.
        prices (`torch.FloatTensor` of shape `(M,)`, *optional*): of member-tokens.

    Returns:
        `dict[str, float]`: NaN where no completion could be judged.
    """
    rewards = total_rewards(rewards_per_func, reward_calls.weights)
    lengths = records.lengths.float()
    found = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((~records.is_ended).float().mean()),
        "reward": float(rewards.nanmean()),
        "reward_std": float(nanstd(rewards)),
        "rewards/unjudged_ratio": float(rewards.isnan().float().mean()),
    }
    if num_generations > 1:
        groups = rewards.view(-1, num_generations)
        spread = groups.nan_to_num(nan=torch.inf).amin(1) == groups.nan_to_num(nan=-torch.inf).amax(1)
        found["frac_reward_zero_std"] = float(spread.float().mean())
    for index, name in enumerate(reward_calls.names):
        found[f"rewards/{name}/mean"] = float(rewards_per_func[:, index].nanmean())
        found[f"rewards/{name}/std"] = float(nanstd(rewards_per_func[:, index]))
    spans = int(records.num_spans.sum())
    if spans:
        found["weights/entropy"] = float(records.entropies.sum()) / spans
        for index, name in enumerate(member_names):
            found[f"weights/{name}/mean"] = float(records.weights[:, index].sum()) / spans
    counts = records.member_tokens.float()
    found["member_tokens/mean"] = float(counts.sum(1).mean())
    for index, name in enumerate(member_names):
        found[f"member_tokens/{name}/mean"] = float(counts[:, index].mean())
    if prices is not None:
        costs = counts @ prices
        found["member_cost"] = float(costs.mean())
        found["net_reward"] = float((rewards - costs).nanmean())
    return found


def check_metric_name(name: str) -> None:
    """Raises a `RewardError` for a reward function's metric that would replace one of the trainer's own."""
    if name in _OWN_METRICS or name.startswith(_OWN_GROUPS):
        raise RewardError(f"log_metric({name!r}): the trainer logs a metric of this name itself; give another name")


class CompletionLog:
    """The completions of the newest rollout with rewards, advantages and weights, printed and saved as tables.

    Args:
        args (`RLAEConfig`): `log_completions`, `num_completions_to_print` and `output_dir`.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self.extra: dict[str, list[Any]] = defaultdict(list)
        self._own: dict[str, list[Any]] = defaultdict(list)
        self._kind = ""
        self._table: dict[str, Any] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Adds a column; reward functions may call it, as in TRL."""
        self._own[column].extend(values)

    def take(self) -> dict[str, list[Any]]:
        """Returns the columns of this process's newest completions, and forgets them."""
        own, self._own = self._own, defaultdict(list)
        return dict(own)

    def gather(self, parts: Sequence[tuple[dict[str, list[Any]], int]]) -> None:
        """Adds the columns of all processes; `None` where a process did not log one.

        Args:
            parts: the columns and the number of completions of each process, in their order.
        """
        for column in sorted({column for columns, _ in parts for column in columns}):
            for columns, count in parts:
                self.extra[column].extend(columns.get(column, [None] * count))

    def keep(self, count: int) -> None:
        """Drops the columns' values past the first `count` completions."""
        for values in self.extra.values():
            del values[count:]

    def add(
        self,
        records: RowRecords,
        rewards_per_func: torch.Tensor,
        reward_names: Sequence[str],
        kind: str = "",
    ) -> None:
        """Keeps a rollout until it is shown.

        Args:
            records (`RowRecords`): N rows.
            rewards_per_func (`torch.Tensor` of shape `(N, F)`): NaN where a function could not judge.
            reward_names (`Sequence[str]`): F names.
            kind (`str`, defaults to `""`): of an evaluation, such as `"eval"`; for the name of the file.
        """
        extra, self.extra = self.extra, defaultdict(list)
        if not self.args.log_completions:
            return
        self._kind = f"{kind}_" if kind else ""
        whole = {name: values for name, values in extra.items() if len(values) == len(records)}
        has_advantages = not bool(records.advantages.isnan().any())
        self._table = {
            "prompts": [text["prompt"] for text in records.texts],
            "completions": [text["completion"] for text in records.texts],
            "rewards": {name: rewards_per_func[:, index].tolist() for index, name in enumerate(reward_names)},
            "advantages": records.advantages.tolist() if has_advantages else None,
            "extra": {"weights": [text["weights"] for text in records.texts], **whole},
        }

    def show(self, step: int) -> None:
        """Prints the newest completions and saves them to `completions/completions_STEP.parquet` in the output folder.

        Those of an evaluation go to `completions_eval_STEP.parquet`.
        """
        if not self._table:
            return
        table, self._table = self._table, {}
        print_prompt_completions_sample(**table, step=step, num_samples=self.args.num_completions_to_print)
        columns = {
            "step": step,
            "prompt": table["prompts"],
            "completion": table["completions"],
            **table["rewards"],
            **table["extra"],
        }
        if table["advantages"] is not None:
            columns["advantage"] = table["advantages"]
        folder = os.path.join(self.args.output_dir, "completions")
        os.makedirs(folder, exist_ok=True)
        buffer = io.BytesIO()
        pd.DataFrame(columns).to_parquet(buffer)
        write_whole(os.path.join(folder, f"completions_{self._kind}{step:05d}.parquet"), buffer.getvalue())
