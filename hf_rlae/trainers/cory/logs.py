"""TRL's metrics and tables of completions, while one agent's rollout runs inside another's."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from accelerate.utils import gather_object
from transformers import Trainer

from hf_rlae.trainers.cory.agents import AgentAdapters

_TOTALS = ("num_tokens",)
"""Metrics that TRL replaces in each rollout, because they are totals."""


def merge_metrics(outer: dict[str, list[float]], inner: Mapping[str, Sequence[float]]) -> None:
    """Adds one agent's metrics to those of all.

    Args:
        outer (`dict[str, list[float]]`): changed in place.
        inner (`Mapping[str, Sequence[float]]`): the metrics of one agent.

    Example:

    >>> outer = {"reward": [1.0], "num_tokens": [90]}
    >>> merge_metrics(outer, {"reward": [3.0], "num_tokens": [50]})
    >>> outer
    {'reward': [1.0, 3.0], 'num_tokens': [90]}
    """
    for name, values in inner.items():
        present = outer.get(name, [])
        outer[name] = [max([*present, *values])] if name in _TOTALS and values else [*present, *values]


def logs_as_json(logs: Mapping[str, Any]) -> str:
    """TRL's table of completions, for a checkpoint. What JSON does not know is saved as its `str`.

    Args:
        logs (`Mapping`): columns, and mappings of columns, each a `deque`.

    Example:

    >>> logs_as_json({"prompt": deque(["a"]), "extra": {"score": deque([0.5])}})
    '{"prompt": ["a"], "extra": {"score": [0.5]}}'
    """
    return json.dumps(logs, default=lambda value: list(value) if isinstance(value, deque) else str(value))


class NamedEvaluations(Trainer):
    """A mixin for TRL trainers: with several evaluation datasets, metrics have the name of their dataset.

    With `eval_dataset={"easy": ..., "hard": ...}` transformers logs `eval_easy_loss` and `eval_hard_loss`, but TRL
    gives its own metrics of both datasets the same names, so that `evaluate` returns those of the last one. Here they
    are `eval_easy_reward` and `eval_hard_reward`.

    Source: ours.
    """

    _metrics: Any
    _evaluated = ""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """See `Trainer.evaluate`."""
        former = self._evaluated
        self._evaluated = metric_key_prefix.removeprefix("eval_") if metric_key_prefix.startswith("eval_") else ""
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._evaluated = former

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See `Trainer.log`."""
        if self._evaluated:
            metrics = self._metrics["eval"]
            named = {f"{self._evaluated}_{name}": values for name, values in metrics.items()}
            metrics.clear()
            metrics.update(named)
        super().log(logs, *args, **kwargs)


class AgentMetrics(NamedEvaluations):
    """A mixin for TRL trainers with several agents: metrics of each agent, besides their means.

    Source: ours.
    """

    per_agent_metrics: ClassVar[tuple[str, ...]] = ("kl", "entropy")
    """Metrics of the trainer that are also logged as `agent/<name>/<metric>`."""

    args: Any
    agents: AgentAdapters
    _all_metrics: dict[str, list[float]] | None = None

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"  # type: ignore[union-attr]

    @contextlib.contextmanager
    def _metrics_of(self, agent: str) -> Iterator[None]:
        """Inside, metrics are also recorded as the agent's."""
        mode = self._mode
        outer, outermost = self._metrics[mode], self._all_metrics
        inner: dict[str, list[float]] = defaultdict(list)
        # one agent's rollout runs inside another's: its metrics skip the other agent's and go to those of all
        self._all_metrics = together = outer if outermost is None else outermost
        self._metrics[mode] = inner
        try:
            yield
        finally:
            self._metrics[mode], self._all_metrics = outer, outermost
        for name in self.per_agent_metrics:
            if name in inner:
                together[f"agent/{agent}/{name}"].extend(inner[name])
        merge_metrics(together, inner)

    @contextlib.contextmanager
    def _metrics_aside(self) -> Iterator[None]:
        """Inside, no metric is recorded but totals."""
        mode = self._mode
        outer = self._metrics[mode]
        inner: dict[str, list[float]] = defaultdict(list)
        self._metrics[mode] = inner
        try:
            yield
        finally:
            self._metrics[mode] = outer
        merge_metrics(outer, {name: inner[name] for name in _TOTALS if name in inner})

    def _widen_logs(self) -> None:
        """Makes room in TRL's tables for the completions of all agents; TRL sizes them for one rollout."""
        rows = self.args.generation_batch_size * len(self.agents.names)
        self._logs: dict[str, Any] = {
            **{name: deque(maxlen=rows) for name in ("images", "prompt", "completion", "advantages")},
            **{name: defaultdict(lambda: deque(maxlen=rows)) for name in ("rewards", "extra")},
        }


class CompletionColumns:
    """The extra columns of TRL's table of completions (`log_extra` of reward functions), one agent after the other.

    TRL keeps the values that reward functions log and adds them to the table at the end of the rollout. Since the next
    agent's rollout ends inside that of the agent before, its rows would receive the other's values; and a column that
    is logged for one role alone would be shorter than the table.

    Args:
        trainer: a TRL trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._aside: list[set[str]] = []

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Adds columns for the rows of the current agent."""
        for name, values in columns.items():
            self.trainer._pending_extra_logs[name].extend(values)

    @contextlib.contextmanager
    def put_aside(self) -> Iterator[None]:
        """Inside, the values of the current agent are set aside."""
        trainer = self.trainer
        kept = trainer._pending_extra_logs, trainer._pending_metrics
        trainer._pending_extra_logs, trainer._pending_metrics = defaultdict(list), defaultdict(list)
        self._aside.append(set(kept[0]))
        try:
            yield
        finally:
            self._aside.pop()
            trainer._pending_extra_logs, trainer._pending_metrics = kept

    def complete(self, count: int) -> None:
        """Fills the current agent's rows with `None` in all other columns that the table has or will have.

        Args:
            count (`int`): rows of the current agent in this process.
        """
        pending, table = self.trainer._pending_extra_logs, self.trainer._logs
        rows = len(table["prompt"])
        known = gather_object([*set(pending).union(table["extra"], *self._aside)])
        for name in sorted(set(known)):
            column = table["extra"][name]
            # older rows, and rows of later agents in this rollout, lack the column
            column.extendleft([None] * (rows - len(column)))
            values = pending[name]
            values.extend([None] * (count - len(values)))
