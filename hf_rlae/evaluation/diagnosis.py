"""`diagnose`: whether some members are worth an ensemble or a policy."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from hf_rlae.checks import COUNT, Bounds, check_number
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.evaluation.advice import Advice, advise_on_answers, advise_on_texts
from hf_rlae.evaluation.loop import evaluate
from hf_rlae.evaluation.questions import CONTEXT_CHARACTERS
from hf_rlae.evaluation.results import EvaluationReport, MethodResult
from hf_rlae.evaluation.statistics import Difference, difference, estimate
from hf_rlae.evaluation.stretches import ReadText, StretchReader
from hf_rlae.evaluation.text_gains import TextGains, measure_texts
from hf_rlae.files import write_whole
from hf_rlae.reports import short_names
from hf_rlae.tasks import get_task, load_task

FEWEST = 12
"""Texts or questions that a diagnosis needs: a half to tune on, a half to measure on."""
_REFERENCES = ("solution", "completion", "answer")
"""Columns of a text that follows the prompt, in the order in which they are looked for."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        recommendation (`str`): `"member"` (use one), `"ensemble"` (fixed weights) or `"policy"` (train one).
        advice (`str`): one sentence, with the numbers behind it.
        best_member (`str`): its name.
        weights (`dict[str, float]`): by member, tuned on a half of the texts; empty without texts.
        texts (`EvaluationReport`, *optional*): bits per byte of reference texts, on the other half.
        answers (`EvaluationReport`, *optional*): scores of written answers.
        facts (`dict[str, float]`): `agreement` (share of places where the members' most likely tokens begin alike),
            `common_boundaries` (share of token boundaries that all members have), `time_ratio` (forward passes of all
            members, over those of the best one), and `same_answers` (share of questions that all members answer
            equally well).
    """

    recommendation: str
    advice: str
    best_member: str
    weights: Mapping[str, float]
    texts: EvaluationReport | None
    answers: EvaluationReport | None
    facts: Mapping[str, float]

    def to_markdown(self) -> str:
        """The advice, the facts, and the tables."""
        facts = "".join(f"* {name.replace('_', ' ')}: {value:.2f}\n" for name, value in self.facts.items())
        tables = [report.to_markdown() for report in (self.texts, self.answers) if report is not None]
        return "\n".join([f"**{self.advice}**\n", facts, *tables])

    def to_json(self) -> str:
        """All of it; numbers that are not known are null."""
        reports = {"texts": self.texts, "answers": self.answers}
        content = {
            "recommendation": self.recommendation,
            "advice": self.advice,
            "best_member": self.best_member,
            "weights": dict(self.weights),
            "facts": dict(self.facts),
            **{name: None if report is None else json.loads(report.to_json()) for name, report in reports.items()},
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `diagnosis.md` and `diagnosis.json`, each atomically.

        Args:
            folder (`str` or `Path`): created if it does not exist.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        texts = {"diagnosis.md": self.to_markdown(), "diagnosis.json": self.to_json()}
        return [write_whole(place / name, text) for name, text in texts.items()]


def diagnose(
    model: Any,
    task: Any,
    *,
    split: str = "test",
    source: str | Path | None = None,
    reward: str | Callable[..., Any] | None = None,
    text_column: str | None = None,
    answers: bool = True,
    limit: int = 200,
    max_characters: int = 2000,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    seed: int = 0,
    progress: bool = True,
    **task_options: Any,
) -> Diagnosis:
    """Says whether to use one member, an ensemble with fixed weights, or to train a policy.

    Each member reads reference texts once, in its own tokens. Between common boundaries of the members' tokens, a
    member's probability of the text is the product of its own tokens' probabilities. On one half of the texts, fixed
    weights are tuned, and a linear policy is trained on what the members show before each span; on the other half, both
    are compared with the best member, and with oracles that know the best member of each text and each span. If there
    is a reward, the members also write answers to that half, alone and together.

    Source: ours.

    Args:
        model: an ensemble, or a list of members as for `EnsembleForCausalLM.from_members`. Its span length is used.
        task: the name of a task (see `load_task`), a dataset, or a list of rows. A row has a `text`; or a `prompt`
            (`str`) with a text that follows it in `solution`, `completion` or `answer`; and what the reward reads.
        split (`str`, defaults to `"test"`), source (`str` or `Path`, *optional*), task_options: as in `load_task`.
        reward (`str` or callable, *optional*): judges answers; the task's own by default.
        text_column (`str`, *optional*): of the reference texts.
        answers (`bool`, defaults to `True`): whether members write answers, if there is a reward.
        limit (`int`, defaults to 200): the maximum number of rows, at least 12.
        max_characters (`int`, defaults to 2000): of a reference text that are read.
        batch_size (`int`, defaults to 8), max_new_tokens (`int`, defaults to 256): of answers.
        seed (`int`, defaults to 0): of the halves and the bootstrap.
        progress (`bool`, defaults to `True`): whether to show progress bars where stderr is a terminal.

    Returns:
        `Diagnosis`: with `advice`, `to_markdown()`, `to_json()` and `save(folder)`.

    Raises:
        ConfigError: fewer than two members, members on other machines without a reward, or options out of range.
        InputError: too few rows, or rows with neither a text nor a reward.
        TaskError: a task that cannot be loaded.

    Example:

    >>> from hf_rlae import diagnose, load_demo_members
    >>> found = diagnose(load_demo_members(), "arithmetic_chain", limit=60, answers=False)
    >>> found.recommendation, found.texts.result("tuned weights").value < found.texts.result("equal weights").value
    ('policy', True)
    """
    check_number("limit", limit, Bounds(FEWEST, is_whole=True, note="half of the rows tune weights, half measure them"))
    check_number("max_characters", max_characters, COUNT)
    check_number("seed", seed, Bounds(0, is_whole=True))
    ensemble = model if isinstance(model, EnsembleForCausalLM) else EnsembleForCausalLM.from_members(model)
    names = short_names(member.name for member in ensemble.members)
    if len(names) < 2:
        raise ConfigError(f"a diagnosis compares members, and there is one: {names[0]}; give at least two")
    name, rows, judge = _rows(task, split, source, reward, limit, seed, task_options)
    if judge is None and not all(_reference(row, text_column) for row in rows):
        raise InputError(
            f"{name}: the rows have the columns {', '.join(rows[0])}, neither a text ({_columns(text_column)}) nor a "
            "reward that judges answers; give text_column= or reward="
        )
    order = random.Random(seed).sample(range(len(rows)), len(rows))  # noqa: S311
    halves = [[rows[at] for at in part] for part in (order[: len(rows) // 2], order[len(rows) // 2 :])]
    gains = None
    if all(_reference(row, text_column) for row in rows):
        texts = _read(ensemble, halves, text_column, max_characters, progress)
        gains = measure_texts(name, names, texts, ensemble.config.span_length or 1, seed)
    written = None
    if answers and judge is not None:
        methods = {"equal weights": [1.0] * len(names)}
        methods |= {} if gains is None else {"tuned weights": list(gains.weights)}
        written = evaluate(
            ensemble,
            {name: halves[1]},
            methods=methods,
            reward=judge,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=progress,
        )
    return _concluded(names, gains, written, seed)


def _rows(
    task: Any, split: str, source: Any, reward: Any, limit: int, seed: int, options: Mapping[str, Any]
) -> tuple[str, list[dict[str, Any]], Any]:
    """The name, the rows, and the reward that judges answers, if there is one."""
    if isinstance(task, str):
        found = load_task(task, split, source, limit, seed, **{"prompt_format": "standard", **options})
        name, rows, judge = task, [dict(row) for row in found], reward or get_task(task).reward
    elif isinstance(task, Sequence) or hasattr(task, "column_names"):
        if options or source is not None:
            extra = ", ".join([*options, *(["source"] if source is not None else [])])
            raise ConfigError(f"{extra}: task is given as rows, not by the name of a task; leave it out")
        name, judge = "dataset", reward
        rows = [{"text": row} if isinstance(row, str) else dict(row) for row in task][:limit]
    else:
        raise ConfigError(f"task={task!r:.80}: give the name of a task, a dataset, or a list of rows")
    if len(rows) < FEWEST:
        raise InputError(
            f"{name} has {len(rows)} rows; give at least {FEWEST}: half of them tune, half of them measure"
        )
    return name, rows, judge


def _columns(text_column: str | None) -> str:
    return "text_column=" + text_column if text_column else ", ".join(("text", *_REFERENCES))


def _reference(row: Mapping[str, Any], text_column: str | None) -> tuple[str, str] | None:
    """What is given and what is scored; `None` if the row has no text."""
    names = [text_column] if text_column else ["text", *_REFERENCES]
    text = next((row[name] for name in names if isinstance(row.get(name), str) and row[name]), None)
    prompt = row.get("prompt")
    if text is None:
        return None
    if isinstance(prompt, str) and prompt and text is not row.get("text"):
        return prompt, text if prompt[-1].isspace() or text[0].isspace() or not prompt[-1].isalnum() else f" {text}"
    cut = next((at for at in range(CONTEXT_CHARACTERS, len(text)) if text[at].isspace()), None)
    return None if cut is None else (text[:cut], text[cut:])


def _read(
    ensemble: EnsembleForCausalLM, halves: Sequence[Sequence[Mapping[str, Any]]], text_column: str | None, most: int,
    progress: bool,
) -> list[list[ReadText]]:  # fmt: skip
    if any(member.is_remote for member in ensemble.members):
        raise ConfigError("a diagnosis of texts reads the members in this process, and some are remote; load them here")
    reader = StretchReader(ensemble.members)
    rows = [row for half in halves for row in half]
    console = Console(stderr=True)
    shown = track(rows, "Reading", console=console, disable=not (progress and console.is_terminal))
    texts = [
        reader.read(prompt, text[:most]) for prompt, text in (_reference(row, text_column) or ("", "") for row in shown)
    ]
    return [texts[: len(halves[0])], texts[len(halves[0]) :]]


def _concluded(names: Sequence[str], gains: TextGains | None, answers: EvaluationReport | None, seed: int) -> Diagnosis:
    facts: dict[str, float] = {} if gains is None else dict(gains.facts)
    found: Advice | None = None
    best = names[0 if gains is None else gains.best]
    if gains is not None:
        found = advise_on_texts(best, gains.bits, names, gains.weights, gains.fixed, gains.policy)
    if answers is not None:
        answers, by_answers, best_writer, same = _with_oracle(names, answers, seed)
        facts["same_answers"] = same
        found, best = (by_answers, best_writer) if found is None else (found, best)
    if found is None:
        raise ConfigError("answers=False, and the rows have no texts; give text_column=, or leave answers out")
    weights = {} if gains is None else dict(zip(names, gains.weights, strict=True))
    texts = None if gains is None else gains.report
    return Diagnosis(found.recommendation, found.sentence, best, weights, texts, answers, facts)


def _with_oracle(
    names: Sequence[str], report: EvaluationReport, seed: int
) -> tuple[EvaluationReport, Advice, str, float]:
    """The table of answers with an oracle that knows the best member of each question; the advice; the best member."""
    task = report.results[0].task
    scores = {method: [record["score"] for record in report.records[task, method]] for method in names}
    judged = [at for at in range(len(scores[names[0]])) if all(own[at] is not None for own in scores.values())]
    if not judged:
        raise InputError(f"{task}: no answer could be judged by the reward; see reward=")
    rows = [[scores[name][at] for name in names] for at in judged]
    best = max(names, key=lambda name: sum(scores[name][at] for at in judged))
    oracle, sizes = [max(row) for row in rows], [1.0] * len(rows)
    theirs = [scores[best][at] for at in judged]
    own, gain = estimate(oracle, sizes, seed), difference(oracle, theirs, sizes, seed)
    row = MethodResult(
        task=task, method="oracle per question", metric=report.results[0].metric, value=own.value, low=own.low,
        high=own.high, difference=gain.value, difference_low=gain.low, difference_high=gain.high,
        p_value=gain.p_value, test=gain.test, num_questions=len(rows),
    )  # fmt: skip
    equal = report.result("equal weights")
    uniform = Difference(equal.difference, equal.difference_low, equal.difference_high, equal.p_value, equal.test)
    advice = advise_on_answers(best, report.result(best).value, uniform, gain)
    same = sum(len(set(row)) == 1 for row in rows) / len(rows)
    return replace(report, results=(*report.results, row)), advice, best, same
