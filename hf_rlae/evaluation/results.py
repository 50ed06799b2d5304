"""What an evaluation found: a row per task and method, as Markdown, JSON, CSV and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rlae.evaluation.records import Record
from hf_rlae.files import write_whole
from hf_rlae.reports import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADINGS = (
    "method", "{metric}", "95% interval", "against best member", "95% interval", "p", "tokens/question",
    "s/question", "ms/token", "time ratio", "peak MiB",
)  # fmt: skip


@dataclass(frozen=True)
class MethodResult:
    """One method on one task.

    Attributes:
        task, method (`str`): their names.
        metric (`str`): of `value`: `"accuracy"`, the measure of another reward, or `"bits per byte"`.
        value, low, high (`float`): the mean over the questions, and its 95% bootstrap interval.
        difference, difference_low, difference_high (`float`): to the best member, on the same questions; NaN without
            members. For bits per byte, a gain is negative.
        p_value (`float`), test (`str`): of no difference, and how it was found (`"sign test"` or `"bootstrap"`).
        num_questions, num_unjudged (`int`): questions that were judged, and those that the reward could not judge.
        tokens_per_question (`float`): mean number of tokens of a completion, or of the tokens that were scored.
        seconds_per_question, ms_per_token (`float`): time without the reward. In a batch, questions share its time.
        time_ratio (`float`): seconds per question, divided by the sum of those of all members by themselves.
        peak_memory_mib (`float`): the largest peak of a batch: of GPU memory, or without GPUs of the process.
        batch_size (`int`): questions that were answered together.
    """

    task: str
    method: str
    metric: str
    value: float
    low: float
    high: float
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    p_value: float = math.nan
    test: str = ""
    num_questions: int = 0
    num_unjudged: int = 0
    tokens_per_question: float = math.nan
    seconds_per_question: float = math.nan
    ms_per_token: float = math.nan
    time_ratio: float = math.nan
    peak_memory_mib: float = math.nan
    batch_size: int = 1

    def cells(self) -> tuple[str, ...]:
        """The row of the table, as text."""
        return (
            self.method,
            _shown(self.value, ".3f"),
            _interval(self.low, self.high, ".3f"),
            _shown(self.difference, "+.3f"),
            _interval(self.difference_low, self.difference_high, "+.3f"),
            _shown(self.p_value, ".2g"),
            _shown(self.tokens_per_question, ".1f"),
            _shown(self.seconds_per_question, ".3g"),
            _shown(self.ms_per_token, ".3g"),
            _shown(self.time_ratio, ".2f"),
            _shown(self.peak_memory_mib, ".0f"),
        )


@dataclass(frozen=True)
class EvaluationReport:
    """The results of `evaluate`.

    Attributes:
        results (`tuple[MethodResult, ...]`): by task, members first.
        notes (`tuple[str, ...]`): what a reader of the numbers must know, such as how the best member was chosen.
        settings (`Mapping[str, Any]`): of the evaluation.
        records (`Mapping[tuple[str, str], Sequence[dict]]`): by task and method, what is known of every question:
            `key`, `text` or `logps`, `score`, `num_tokens`, `seconds`.

    Example:

    >>> from hf_rlae import evaluate
    >>> rows = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "3+3=", "answer": "6"}]
    >>> report = evaluate(lambda prompts: ["4"] * len(prompts), rows, reward="number")
    >>> report.results[0].value
    0.5
    """

    results: tuple[MethodResult, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[tuple[str, str], Sequence[Record]] = field(default_factory=dict, repr=False)

    def result(self, method: str, task: str | None = None) -> MethodResult:
        """The result of one method; `task` is needed if there are several tasks.

        Raises:
            KeyError: there is none.
        """
        found = [each for each in self.results if each.method == method and task in (None, each.task)]
        if len(found) != 1:
            raise KeyError(f"{method!r}: {len(found)} results; methods are {sorted({r.method for r in self.results})}")
        return found[0]

    def tables(self) -> dict[str, list[tuple[str, ...]]]:
        """By task, the table as rows of text, with the headings first; columns without any number are left out."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for result in self.results:
            headings = tuple(heading.format(metric=result.metric) for heading in _HEADINGS)
            found.setdefault(result.task, [headings]).append(result.cells())
        return {task: _without_empty_columns(lines) for task, lines in found.items()}

    def to_markdown(self) -> str:
        """A table per task, and the notes."""
        parts = []
        for task, (headings, *rows) in self.tables().items():
            lines = [headings, ("---", *["---:"] * (len(headings) - 1)), *rows]
            count = next(result.num_questions for result in self.results if result.task == task)
            parts.append(f"**{task}**, {count} questions\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
        return "\n".join([*parts, *(f"{note}\n" for note in self.notes)])

    def to_json(self) -> str:
        """Results, notes and settings; numbers that are not known are null."""
        results = [
            {name: value if not isinstance(value, float) or math.isfinite(value) else None for name, value in row}
            for row in (asdict(result).items() for result in self.results)
        ]
        content = {"results": results, "notes": list(self.notes), "settings": dict(self.settings)}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"

    def to_csv(self) -> str:
        """One line per result; numbers that are not known are empty."""
        file = io.StringIO()
        writer = csv.DictWriter(file, [entry.name for entry in fields(MethodResult)], lineterminator="\n")
        writer.writeheader()
        for row in map(asdict, self.results):
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
        return file.getvalue()

    def plot(self) -> Figure:
        """The values with their intervals, one panel per task.

        Returns:
            `matplotlib.figure.Figure`: not registered with pyplot, so it need not be closed.
        """
        from matplotlib.figure import Figure

        tasks = list(dict.fromkeys(result.task for result in self.results))
        most = max(sum(result.task == task for result in self.results) for task in tasks)
        figure = Figure(figsize=(4.2 * len(tasks), 1.2 + 0.34 * most), layout="constrained")
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            rows = [result for result in self.results if result.task == task][::-1]
            for at, row in enumerate(rows):
                known = math.isfinite(row.low) and math.isfinite(row.high)
                errors = [[row.value - row.low], [row.high - row.value]] if known else None
                axes.errorbar(row.value, at, xerr=errors, fmt="o", color="#0f9fb5", capsize=3)
            axes.set_yticks(range(len(rows)), [row.method for row in rows])
            axes.set(xlabel=rows[0].metric, title=task, ylim=(-0.6, len(rows) - 0.4))
            axes.grid(axis="x", alpha=0.3)
        return figure

    def save(self, folder: str | Path, name: str = "results") -> list[Path]:
        """Writes the tables and the picture, each file atomically.

        Args:
            folder (`str` or `Path`): created if it does not exist.
            name (`str`, defaults to `"results"`): of the files, before `.md`, `.json`, `.csv` and `.png`.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        texts = {".md": self.to_markdown(), ".json": self.to_json(), ".csv": self.to_csv()}
        paths = [write_whole(place / f"{name}{ending}", text) for ending, text in texts.items()]
        return [*paths, save_figure(self.plot(), place / f"{name}.png")]


def _without_empty_columns(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    kept = [at for at in range(len(lines[0])) if any(line[at] for line in lines[1:])]
    return [tuple(line[at] for at in kept) for line in lines]


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _interval(low: float, high: float, form: str) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{format(low, form)} to {format(high, form)}"
