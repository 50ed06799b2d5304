"""A reward from comparisons: how often a completion is preferred to the others of its prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.checks import COUNT, OPTIONAL_COUNT, check_number
from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards.contract import Batch, Reward, columns_of, is_async, name_of
from hf_rlae.rewards.pair_judges import PairJudge

Pair = tuple[int, int]
"""Two rows, the first and the second completion."""


class PairwiseReward(Reward):
    """See `pairwise_reward`."""

    measure = "win_rate"

    def __init__(self, judge: Callable[..., Any], num_opponents: int | None, batch_size: int, name: str) -> None:
        super().__init__(name)
        check_number("num_opponents", num_opponents, OPTIONAL_COUNT)
        check_number("batch_size", batch_size, COUNT)
        self.judge, self.num_opponents, self.batch_size = judge, num_opponents, batch_size
        self.further_columns = tuple(sorted(columns_of(judge) - {"prompts", "first", "second"}))

    def score_texts(self, texts: list[str], batch: Batch) -> Any:
        """See `Reward.score_texts`."""
        pairs = self._pairs(batch.required("prompts"), texts)
        places = _both_orders(pairs, texts)
        probs = [prob for call in self._calls(places, batch) for prob in self._checked(self.judge(**call), call)]
        return _win_rates(pairs, texts, dict(zip(places, probs, strict=True)))

    def _pairs(self, prompts: Sequence[Any], texts: Sequence[str]) -> dict[Pair, Pair]:
        """The pairs that are compared, and the rows that are judged for each: the first ones with these two texts."""
        pairs: dict[Pair, Pair] = {}
        for _, run in groupby(range(len(texts)), key=_position_of_group(prompts)):
            rows, judged = list(run), dict[tuple[str, str], Pair]()
            for one, other in _opponents(len(rows), self.num_opponents):
                pair = (rows[one], rows[other])
                known = judged.setdefault((texts[pair[0]], texts[pair[1]]), pair)
                judged.setdefault((texts[pair[1]], texts[pair[0]]), (known[1], known[0]))
                pairs[pair] = known
        return pairs

    def _calls(self, places: Sequence[Pair], batch: Batch) -> Iterator[dict[str, Any]]:
        """The arguments of the judge, `batch_size` pairs at a time."""
        given = {"prompts", "completions", "completion_ids", "first", "second"}
        columns = {
            name: values
            for name, values in batch.columns.items()
            if name not in given and isinstance(values, list | tuple) and len(values) == batch.size
        }
        prompts, completions = batch.required("prompts"), batch.required("completions")
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            yield {
                **{name: [values[first] for first, _ in part] for name, values in columns.items()},
                "prompts": [prompts[first] for first, _ in part],
                "first": [completions[first] for first, _ in part],
                "second": [completions[second] for _, second in part],
            }

    def _checked(self, output: Any, call: dict[str, Any]) -> list[float | None]:
        """What a judge returned, as one probability or `None` per pair."""
        expected = f"expected a list of {len(call['first'])} probabilities, None where it could not judge"
        try:
            values = [None if value is None or math.isnan(value) else float(value) for value in output]
        except (TypeError, ValueError):
            values = []
        if len(values) != len(call["first"]):
            raise RewardError(f"{self.__name__}: the judge {name_of(self.judge)} returned {output!r:.80}; {expected}")
        for at, value in enumerate(values):
            if value is not None and not 0 <= value <= 1:
                raise RewardError(
                    f"{self.__name__}: the judge {name_of(self.judge)} returned {value!r} for the completions "
                    f"{call['first'][at]!r:.60} and {call['second'][at]!r:.60}; {expected}"
                )
        return values


class AsyncPairwiseReward(PairwiseReward):
    """A pairwise reward whose judge is an async function."""

    async def __call__(self, *args: Any, **columns: Any) -> Any:  # type: ignore[override]
        """The same call as for every async reward."""
        return await super().__call__(*args, **columns)  # type: ignore[misc]

    async def score_texts(  # type: ignore[override]
        self, texts: list[str], batch: Batch
    ) -> list[float | None]:
        """See `Reward.score_texts`."""
        pairs = self._pairs(batch.required("prompts"), texts)
        places = _both_orders(pairs, texts)
        probs: list[float | None] = []
        for call in self._calls(places, batch):
            probs += self._checked(await self.judge(**call), call)
        return _win_rates(pairs, texts, dict(zip(places, probs, strict=True)))


def pairwise_reward(
    judge: str | Path | PreTrainedModel | Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    num_opponents: int | None = None,
    batch_size: int = 8,
    name: str = "pairwise_reward",
    **options: Any,
) -> PairwiseReward:
    """The mean probability that a completion is preferred to the other completions of its prompt.

    `r_i = mean_j p(i beats j)` with `p(i beats j) = (judge(i, j) + 1 - judge(j, i)) / 2`: every pair is judged in both
    orders, so that a judge's preference for a position cancels. Completions with the same text tie at 0.5 without being
    judged, and equal pairs of a group are judged once. Completions form a group where their prompts are equal and
    adjacent, as trainers pass them. A completion without an opponent, and one that the judge could not compare with any
    other, could not be judged: its reward is `None`.

    The mean over a group is 0.5 whatever the completions are worth, since each win is another's loss. It does not show
    progress: to watch training, add a second reward with weight 0. Completions of other processes are not compared: let
    each process have whole groups.

    Source: ours, after PairRanker of LLM-Blender (arXiv 2306.02561), which scores two candidates in one pass and
    aggregates over all pairs.

    Args:
        judge: a model of `AutoModelForSequenceClassification`, its folder or Hub id (see `PairJudge`), or a function,
            sync or async: `judge(prompts, first, second, **columns)` returns, per pair, the probability from 0 to 1
            that the first completion is better, or `None`. Prompts and completions are strings or messages, as in the
            dataset; columns are those of the dataset.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of a model.
        num_opponents (`int`, *optional*): with how many others of its group a completion is compared (one more where
            this and the size of the group are both odd); `None` for all. All are G (G - 1) / 2 pairs.
        batch_size (`int`, defaults to 8): pairs in one call of the judge, for a model in one forward pass.
        name (`str`, defaults to `"pairwise_reward"`): its `__name__`.
        options: of `PairJudge`: `label`, `tie_label`, `template`, `max_length`, `chat_template_kwargs`, and those of
            `from_pretrained`.

    Returns:
        callable: a reward, from 0 to 1.

    Raises:
        ConfigError: an argument cannot be used; the message names it.

    Example:

    >>> def shorter(prompts, first, second, **columns):
    ...     return [float(len(one) < len(other)) for one, other in zip(first, second)]
    >>> reward = pairwise_reward(shorter)
    >>> reward(prompts=["Q"] * 3 + ["R"], completions=["a", "bb", "ccc", "d"])
    [1.0, 0.5, 0.0, None]
    """
    if isinstance(judge, str | Path | nn.Module):
        judge = PairJudge(judge, tokenizer, **options)  # type: ignore[arg-type]
    elif isinstance(judge, type) or not callable(judge):
        raise ConfigError(
            f"judge is {judge!r:.80}; give a sequence-classification model, its folder or Hub id, or a function "
            "judge(prompts, first, second, **columns) that returns a probability per pair"
        )
    elif tokenizer is not None or options:
        given = [*(["tokenizer"] if tokenizer is not None else []), *sorted(options)]
        raise ConfigError(f"{', '.join(given)}: for a judge that is a model, but {name_of(judge)} is a function")
    kind = AsyncPairwiseReward if is_async(judge) else PairwiseReward
    return kind(judge, num_opponents, batch_size, name)


def _position_of_group(prompts: Sequence[Any]) -> Callable[[int], int]:
    """Maps a row to the first row of its run of equal prompts."""
    starts: list[int] = []
    for row, prompt in enumerate(prompts):
        starts.append(starts[-1] if row and prompt == prompts[row - 1] else row)
    return starts.__getitem__


def _opponents(size: int, num_opponents: int | None) -> Iterator[Pair]:
    """Pairs of places in a group: each place in as many pairs, with those at fixed distances around the group."""
    wanted = size - 1 if num_opponents is None else min(num_opponents, size - 1)
    distances = [*range(1, wanted // 2 + 1)]
    if wanted % 2:
        distances.append(wanted // 2 + 1 if size % 2 else size // 2)
    for distance in distances:
        for place in range(size // 2 if 2 * distance == size else size):
            yield place, (place + distance) % size


def _both_orders(pairs: dict[Pair, Pair], texts: Sequence[str]) -> list[Pair]:
    """What the judge is asked: each pair with different texts once in each order."""
    asked = [pair for pair in pairs.values() if texts[pair[0]] != texts[pair[1]]]
    return list(dict.fromkeys(order for first, second in asked for order in ((first, second), (second, first))))


def _win_rates(pairs: dict[Pair, Pair], texts: Sequence[str], probs: dict[Pair, float | None]) -> list[float | None]:
    won, count = [0.0] * len(texts), [0] * len(texts)
    for (one, other), (first, second) in pairs.items():
        share: float | None = 0.5
        if texts[one] != texts[other]:
            ahead, behind = probs[first, second], probs[second, first]
            share = None if ahead is None or behind is None else (ahead + 1 - behind) / 2
        if share is not None:
            for row, own in ((one, share), (other, 1 - share)):
                won[row] += own
                count[row] += 1
    return [total / number if number else None for total, number in zip(won, count, strict=True)]
