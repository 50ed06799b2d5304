"""Rewards as metrics of the library `evaluate`, as classes that need no download.

`evaluate.load("name")` would download code from the Hub.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_rlae.extras import missing_packages

if (message := missing_packages("hf_rlae.evaluation.metrics", ("evaluate", "datasets"), "train")) is not None:
    raise ImportError(message)

import evaluate
from datasets import Features, Value

from hf_rlae.rewards import RewardError, get_reward
from hf_rlae.rewards.contract import is_async, name_of

_INPUTS = """
Args:
    predictions (`list`): the completions, strings or lists of messages.
    references (`list`): the ground truths, as in the column `answer` of the reward (a string, a number, a list, `None`
        if a completion cannot be judged), or dicts with the columns that the reward reads (`answer`, `choices`,
        `aliases`, `test_list`).
Returns:
    `dict`: the mean reward of the judged completions (NaN if there are none), `num_judged`, `num_unjudged`.
"""


class RewardMetric(evaluate.Metric):
    """The mean of a reward as an `evaluate.Metric`: `add`, `add_batch`, `compute` and `evaluate.combine` work on it.

    Completions that the reward could not judge (`None`) are left out of the mean and counted in `num_unjudged`.
    Predictions and references are kept in memory and not written to the cache, unless several processes share the work
    (`num_process`).

    Args:
        reward (`str` or callable): a name that `get_reward` knows, or a reward function.
        keep_in_memory (`bool`, *optional*): on by default with one process.
        cache_dir (`str`, *optional*): the folder of `evaluate`'s files if not in memory.
        kwargs: further arguments of `evaluate.Metric` (`num_process`, `process_id`, `experiment_id`, ...).

    Raises:
        RewardError: an async reward, or an error of the reward in `compute`.

    Example:

    >>> metric = RewardMetric("gsm8k")
    >>> metric.compute(predictions=["It is 5.", "#### 6", "7"], references=["5", "2 + 3 #### 5", None])
    {'accuracy': 0.5, 'num_judged': 2, 'num_unjudged': 1}
    """

    def __init__(
        self,
        reward: str | Callable[..., Any],
        keep_in_memory: bool | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.reward = get_reward(reward) if isinstance(reward, str) else reward
        if is_async(self.reward):
            raise RewardError(f"{name_of(self.reward)} is async; give a reward that is a plain function")
        if keep_in_memory is None:
            keep_in_memory = kwargs.get("num_process", 1) == 1
        options = {"config_name": name_of(self.reward), "keep_in_memory": keep_in_memory, **kwargs}
        if keep_in_memory and cache_dir is None:
            # evaluate creates its folder even if it writes nothing to it
            with tempfile.TemporaryDirectory() as folder:
                super().__init__(cache_dir=folder, **options)
        else:
            super().__init__(cache_dir=cache_dir, **options)

    @property
    def measure(self) -> str:
        """The key of the mean in the result of `compute`, such as `"accuracy"`."""
        return str(getattr(self.reward, "measure", "score"))

    def _info(self) -> evaluate.EvaluationModuleInfo:
        return evaluate.EvaluationModuleInfo(
            description=f"The mean of the reward {name_of(self.reward)}.",
            citation="",
            inputs_description=_INPUTS,
            # JSON, because references of one metric may be strings, numbers, lists and None
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one completion and its ground truth; see `evaluate.Metric.add`."""
        super().add(prediction=_to_json(prediction), reference=_to_json(reference), **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds several completions and their ground truths; see `evaluate.Metric.add_batch`."""
        for name, column in (("predictions", predictions), ("references", references)):
            if isinstance(column, str) or not hasattr(column, "__len__"):
                raise ValueError(f"{name} must be a list with one entry per completion, got {column!r:.80}")
        super().add_batch(
            predictions=[_to_json(prediction) for prediction in predictions],
            references=[_to_json(reference) for reference in references],
            **kwargs,
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:  # type: ignore[override]
        rewards = self._rewards([json.loads(each) for each in predictions], [json.loads(each) for each in references])
        judged = [reward for reward in rewards if reward is not None and not math.isnan(reward)]
        mean = math.fsum(judged) / len(judged) if judged else math.nan
        return {self.measure: mean, "num_judged": len(judged), "num_unjudged": len(rewards) - len(judged)}

    def _rewards(self, completions: Sequence[Any], references: Sequence[Any]) -> list[float | None]:
        """The reward of each completion with its ground truth."""
        rows = [self._columns(reference) for reference in references]
        columns = {name: [row.get(name) for row in rows] for name in {"answer"}.union(*rows)}
        return list(self.reward(prompts=[""] * len(completions), completions=completions, **columns))

    def _columns(self, reference: Any) -> dict[str, Any]:
        """A reference as a row of columns: a dict with the key `answer`, or with all that the reward needs, is one."""
        needed = set(getattr(self.reward, "required_columns", ())) or {"answer"}
        is_row = isinstance(reference, dict) and ("answer" in reference or needed <= set(reference))
        return reference if is_row else {"answer": reference}


class LetterAccuracy(RewardMetric):
    """The share of completions that name the right option; see `hf_rlae.rewards.letter_rule`.

    Example:

    >>> references = [{"answer": "B", "choices": ["Rome", "Paris"]}] * 2
    >>> LetterAccuracy().compute(predictions=["(B)", "The answer is Rome."], references=references)
    {'accuracy': 0.5, 'num_judged': 2, 'num_unjudged': 0}
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("letter", **kwargs)


class NumberAccuracy(RewardMetric):
    """The share of completions that answer with the right number; see `hf_rlae.rewards.number_rule`.

    Example:

    >>> NumberAccuracy().compute(predictions=["1,200", "12"], references=[1200, 1200])["accuracy"]
    0.5
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("number", **kwargs)


class ExactMatch(RewardMetric):
    """The share of completions that equal the answer or an alias; see `hf_rlae.rewards.exact_match_rule`.

    Example:

    >>> ExactMatch().compute(predictions=["the Beatles!", "Queen"], references=["Beatles", ["ABBA", "Abba"]])
    {'exact_match': 0.5, 'num_judged': 2, 'num_unjudged': 0}
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("exact_match", **kwargs)


class MeanSentiment(RewardMetric):
    """The mean sentiment of completions, from 0 to 1; see `hf_rlae.rewards.sentiment_rule`. References may be `None`.

    Args:
        lexicon (`str`, *optional*): a file in VADER's format.
        kwargs: as for `RewardMetric`.

    Example:

    >>> MeanSentiment().compute(predictions=["", "a table"], references=[None, None])
    {'score': 0.5, 'num_judged': 2, 'num_unjudged': 0}
    """

    def __init__(self, lexicon: str | None = None, **kwargs: Any) -> None:
        options = {} if lexicon is None else {"lexicon": lexicon}
        super().__init__(get_reward("sentiment", **options), **kwargs)


def _to_json(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)  # Fraction and Decimal print what the number rule reads
