"""PairRanker of LLM-Blender: every member answers, and a pairwise ranker picks one answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.baselines.inputs import Prompts
from hf_rlae.baselines.own_answers import alone, answer_alone, chosen_answers
from hf_rlae.baselines.protocol import Baseline, BaselineOutput
from hf_rlae.baselines.registry import baselines
from hf_rlae.checks import COUNT, check_choice, check_number
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards.pair_judges import PairJudge

JudgeFn = Callable[[list[Any], list[str], list[str]], Sequence[float | None]]
"""`judge(prompts, first, second)`: the probability that the first completion is better, per pair."""

AGGREGATIONS = ("max_logits", "max_wins")
_CERTAIN = 1e-6
"""Probabilities nearer to 0 or 1 count as this."""


@baselines.register("pair_ranker")
class PairRanker(Baseline):
    """Every member answers, every two answers are compared in both orders, and the best answer is returned.

    With `l(i, j)` the log-odds that the ranker gives to answer i being better than answer j, `"max_logits"` scores
    `s_i = sum_j l(i, j) - l(j, i)`, and `"max_wins"` counts the comparisons that i wins less those that it loses. Equal
    answers are not compared. Of equally good answers, that of the earlier member wins.

    Source: LLM-Blender (arXiv 2306.02561), Sec. 3, without its GenFuser. The ranker reads prompt and answers in the
    template of [`PairJudge`], not with the paper's special tokens; see `pairrm_judge` for the published one.

    Args:
        judge: a model of `AutoModelForSequenceClassification`, its folder or Hub id, or a function
            `judge(prompts, first, second)`, which returns per pair the probability that the first answer is better, or
            `None`. [`train_pair_ranker`] trains a model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of a model.
        aggregation (`str`, defaults to `"max_logits"`): `"max_logits"` or `"max_wins"`.
        judge_batch_size (`int`, defaults to 8): pairs in one forward pass of the ranker.
        options: of [`PairJudge`], such as `template`, `label` and `max_length`.

    Raises:
        ConfigError: a judge that is neither, or an invalid option.

    Example:

    >>> def shorter(prompts, first, second):
    ...     return [float(len(one) < len(other)) for one, other in zip(first, second)]
    >>> PairRanker(shorter).best(["Q"], [["long"], ["no"], ["yes"]])
    [1]
    """

    def __init__(
        self,
        judge: str | Path | PreTrainedModel | PairJudge | JudgeFn,
        tokenizer: PreTrainedTokenizerBase | None = None,
        aggregation: str = "max_logits",
        judge_batch_size: int = 8,
        **options: Any,
    ) -> None:
        check_choice("aggregation", aggregation, AGGREGATIONS)
        check_number("judge_batch_size", judge_batch_size, COUNT)
        if isinstance(judge, str | Path | nn.Module):
            judge = PairJudge(judge, tokenizer, **options)  # type: ignore[arg-type]
        elif not callable(judge) or tokenizer is not None or options:
            raise ConfigError(
                f"judge is {judge!r:.80}; give a sequence-classification model, its folder or Hub id, with its "
                "tokenizer and options, or a function judge(prompts, first, second) without them"
            )
        self.judge: JudgeFn = judge
        self.aggregation = aggregation
        self.judge_batch_size = judge_batch_size

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        for index in range(len(ensemble.members)):
            alone(ensemble, index)

    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """See [`Baseline`]."""
        answers = [answer_alone(ensemble, index, prompts, settings) for index in range(len(ensemble.members))]
        return chosen_answers(answers, self.best(prompts.given, [answer.texts for answer in answers]))

    def best(self, prompts: Sequence[Any], answers: Sequence[Sequence[str]]) -> list[int]:
        """The member with the best answer to each prompt.

        Args:
            prompts (`Sequence`): B prompts, texts or messages.
            answers (`Sequence[Sequence[str]]`): of each of M members, B answers.
        """
        count = len(answers)
        pairs = [
            (row, one, other)
            for row in range(len(prompts))
            for one in range(count)
            for other in range(count)
            if answers[one][row] != answers[other][row]
        ]
        scores = [[0.0] * count for _ in prompts]
        for start in range(0, len(pairs), self.judge_batch_size):
            part = pairs[start : start + self.judge_batch_size]
            probs = self.judge(
                [prompts[row] for row, _, _ in part],
                [answers[one][row] for row, one, _ in part],
                [answers[other][row] for row, _, other in part],
            )
            for (row, one, other), prob in zip(part, _checked(probs, len(part)), strict=True):
                logit = 0.0 if prob is None else math.log(prob) - math.log1p(-prob)
                if self.aggregation == "max_wins":
                    logit = float((logit > 0) - (logit < 0))
                scores[row][one] += logit
                scores[row][other] -= logit
        return [own.index(max(own)) for own in scores]


def _checked(probs: Sequence[float | None], count: int) -> list[float | None]:
    """The probabilities of a judge, within the open interval from 0 to 1."""
    found = list(probs)
    if len(found) != count or any(prob is not None and not 0 <= prob <= 1 for prob in found):
        raise RewardError(
            f"the judge returned {found!r:.80} for {count} pairs; expected as many probabilities, None where it could "
            "not judge"
        )
    return [None if prob is None else min(max(float(prob), _CERTAIN), 1 - _CERTAIN) for prob in found]
