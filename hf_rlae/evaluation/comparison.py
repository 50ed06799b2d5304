"""From the results of questions to rows of a table: scores, the best member, and differences to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from hf_rlae.evaluation.questions import Question, Questions
from hf_rlae.evaluation.records import Record
from hf_rlae.evaluation.results import MethodResult
from hf_rlae.evaluation.statistics import Difference, difference, estimate


def score_of(questions: Questions, row: Question, record: Record, normalize: str) -> float | None:
    """The score of a question: its reward, 1 or 0 for the most likely option, or the bits of its text.

    Args:
        questions (`Questions`), row (`Question`), record (`dict`): the question and its result.
        normalize (`str`): `"bytes"` divides the log-probability of an option by its bytes, `"none"` does not.
    """
    if questions.scoring == "generate":
        score: float | None = record["score"]
        return score
    logps = [-math.inf if logp is None else logp for logp in record["logps"]]
    if questions.scoring == "bits_per_byte":
        return -logps[0] / math.log(2)
    if normalize == "bytes":
        logps = [logp / size for logp, size in zip(logps, row.sizes, strict=True)]
    return float(logps.index(max(logps)) == row.right)


class Scores:
    """The scores of one method on all questions.

    Args:
        questions (`Questions`), records (`Sequence[dict]`): in the same order.
        normalize (`str`): see `score_of`.
        seed (`int`): of the bootstrap.
    """

    def __init__(self, questions: Questions, records: Sequence[Record], normalize: str, seed: int) -> None:
        self.records = records
        self.values = [
            score_of(questions, row, record, normalize) for row, record in zip(questions.rows, records, strict=True)
        ]
        is_text = questions.scoring == "bits_per_byte"
        self.sizes = [row.sizes[0] if is_text else 1 for row in questions.rows]
        self.seed = seed
        judged = [(value, size) for value, size in zip(self.values, self.sizes, strict=True) if value is not None]
        self.num_judged = len(judged)
        self.mean = estimate([value for value, _ in judged], [size for _, size in judged], seed)
        self.seconds = fmean(record["seconds"] for record in records)

    def minus(self, other: Scores) -> Difference:
        """The difference on the questions that were judged for both."""
        both = [
            (own, others, size)
            for own, others, size in zip(self.values, other.values, self.sizes, strict=True)
            if own is not None and others is not None
        ]
        mine, theirs, sizes = ([row[at] for row in both] for at in range(3))
        return difference(mine, theirs, sizes, self.seed)


def best_of(scores: Mapping[str, Scores], lower_is_better: bool) -> str:
    """The method with the best mean, the first of equal ones."""
    sign = -1 if lower_is_better else 1

    def value(name: str) -> float:
        mean = scores[name].mean.value
        return -math.inf if math.isnan(mean) else sign * mean

    return max(scores, key=value)


def result_rows(
    questions: Questions, scores: Mapping[str, Scores], members: Sequence[str], best: str | None
) -> list[MethodResult]:
    """A row of the table per method.

    Args:
        questions (`Questions`): of the task.
        scores (`Mapping[str, Scores]`): by method.
        members (`Sequence[str]`): those of the methods that are members by themselves.
        best (`str`, *optional*): the best member.
    """
    total = sum(scores[name].seconds for name in members)
    return [_row(questions, name, own, scores[best] if best else None, total) for name, own in scores.items()]


def _row(questions: Questions, name: str, own: Scores, best: Scores | None, total: float) -> MethodResult:
    gain = Difference(math.nan, math.nan, math.nan, math.nan, "") if best in (None, own) else own.minus(best)
    lengths = _known(record.get("num_tokens") for record in own.records)
    tokens = fmean(lengths) if lengths else math.nan
    peaks = _known(record.get("peak_bytes") for record in own.records)
    return MethodResult(
        task=questions.name,
        method=name,
        metric=questions.metric,
        value=own.mean.value,
        low=own.mean.low,
        high=own.mean.high,
        difference=gain.value,
        difference_low=gain.low,
        difference_high=gain.high,
        p_value=gain.p_value,
        test=gain.test,
        num_questions=own.num_judged,
        num_unjudged=len(own.values) - own.num_judged,
        tokens_per_question=tokens,
        seconds_per_question=own.seconds,
        ms_per_token=1000 * own.seconds / tokens if tokens else math.nan,
        time_ratio=own.seconds / total if total else math.nan,
        peak_memory_mib=max(peaks) / 2**20 if peaks else math.nan,
        batch_size=max(record["batch_size"] for record in own.records),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def notes_of(results: Sequence[MethodResult]) -> list[str]:
    """How the numbers of the columns were found."""
    notes = []
    tests = sorted({result.test for result in results if result.test})
    if tests:
        exact = "the exact two-sided sign test on the questions that only one of the two gets right"
        names = {"sign test": exact, "bootstrap": "the two-sided paired bootstrap"}
        notes.append(f"p: {', '.join(names.get(test, test) for test in tests)}. Intervals: bootstrap over questions.")
    if any(math.isfinite(result.time_ratio) for result in results):
        size = max(result.batch_size for result in results)
        notes.append(f"time ratio: seconds per question over the sum of the members' by themselves; batches of {size}.")
    unjudged = sum(result.num_unjudged for result in results)
    if unjudged:
        notes.append(f"{unjudged} answers could not be judged and are left out.")
    return notes
