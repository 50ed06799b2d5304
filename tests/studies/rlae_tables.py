"""Tables and pictures of the study of `RLAETrainer`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from hf_rlae.files import write_whole
from hf_rlae.reports import save_figure
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.chain_policies import TRAINED, beside_defaults

if TYPE_CHECKING:
    from tests.studies.rlae import Run

Entries = Sequence[tuple["Run", dict[str, Any]]]

LEAST_ROOM = 0.1
"""Where the oracle is less than this above the best fixed weights, no share of the way is told."""
WAYS = ("member with the largest weight", "sampled from the mixture", "sampled from a member drawn per span")
"""How learned policies are evaluated, besides greedy tokens of the mixture."""
_FIXED, _ORACLE = "best fixed weights", "oracle switching"


@dataclass(frozen=True)
class StudyTable:
    """Headings and rows of text, and lines below the table."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def shown(self, title: str) -> Table:
        """For a terminal."""
        table = Table(
            box=box.SIMPLE_HEAD,
            title=title,
            title_justify="left",
            caption="\n".join(self.notes),
            caption_justify="left",
        )
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def as_markdown(table: StudyTable, path: Path) -> None:
    """Writes a table as Markdown."""
    lines = [table.headings, ("---", *["---:"] * (len(table.headings) - 1)), *table.rows]
    notes = "".join(f"\n{note}\n" for note in table.notes)
    write_whole(path, "".join(f"| {' | '.join(line)} |\n" for line in lines) + notes)


def settings_told(methods: Iterable[str]) -> tuple[str, ...]:
    """What differs from the defaults of `RLAEConfig` and `PolicyConfig` in the trainings of some methods, as text."""
    found = {method: beside_defaults(TRAINED[method]) for method in dict.fromkeys(methods) if method in TRAINED}
    if not found:
        return ()
    first = next(iter(found.values()))
    shared = {name for name in first if all(own.get(name) == first[name] for own in found.values())}
    lines = ["Trainings use the defaults of `RLAEConfig` and `PolicyConfig` except for " + _told(first, shared)]
    for method, own in found.items():
        if own.keys() - shared:
            lines.append(f"{method}: {_told(own, own.keys() - shared)}")
    return tuple(lines)


def _told(settings: Mapping[str, Any], names: Collection[str]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in settings.items() if name in names)


def right_of(entries: Entries, method: str, span_length: int) -> np.ndarray | None:
    """Right answers of a method, of shape `(seeds, questions)`; one that no span touches stands for all lengths."""
    found = [(run, outcome) for run, outcome in entries if run.method == method]
    at_length = [outcome for run, outcome in found if run.span_length == span_length] or [o for _, o in found[:1]]
    if not at_length:
        return None
    return right_answers_of([outcome["right"] for outcome in at_length])


def right_answers_of(digits: Sequence[str]) -> np.ndarray:
    """Strings of 0 and 1, one a seed, as an array of shape `(seeds, questions)`."""
    return np.array([[int(digit) for digit in row] for row in digits], dtype=float)


def accuracy_table(entries: Entries, span_lengths: Sequence[int], notes: tuple[str, ...] = ()) -> StudyTable:
    """One row a method: accuracy (mean and standard deviation over seeds) and recovered headroom with 95 % intervals.

    Recovered headroom is `(accuracy - best fixed) / (oracle - best fixed)`; the interval of `above best fixed` is that
    of the difference. Both are paired bootstraps over questions and seeds.
    """
    methods = list(dict.fromkeys(run.method for run, _ in entries))
    headings = ["weights"]
    for length in span_lengths:
        headings += [f"span {length}: right", "above best fixed", "headroom"]
    rows = []
    for method in methods:
        row = [method]
        for length in span_lengths:
            row += _cells(entries, method, length)
        rows.append(tuple(row))
    return StudyTable(tuple(headings), tuple(rows), notes)


def ways_table(entries: Entries, span_lengths: Sequence[int]) -> StudyTable:
    """One row a learned method: accuracy (mean and standard deviation) of the same trainings in every way."""
    methods = list(dict.fromkeys(run.method for run, outcome in entries if "ways" in outcome))
    headings = ("greedy, mixture", *WAYS)
    rows = []
    for method in methods:
        row = [method]
        for length in span_lengths:
            found = [o for run, o in entries if (run.method, run.span_length) == (method, length) and "ways" in o]
            for values in ([o["accuracy"] for o in found], *([o["ways"][way] for o in found] for way in WAYS)):
                row.append(_mean_told(np.array(values)) if values else "")
        rows.append(tuple(row))
    return StudyTable(
        ("weights", *(f"span {length}: {name}" for length in span_lengths for name in headings)), tuple(rows)
    )


def _mean_told(by_seed: np.ndarray) -> str:
    spread = f" ± {by_seed.std(ddof=1):.3f}" if len(by_seed) > 1 else ""
    return f"{by_seed.mean():.3f}{spread}"


def _cells(entries: Entries, method: str, span_length: int) -> list[str]:
    right = right_of(entries, method, span_length)
    fixed, oracle = right_of(entries, _FIXED, span_length), right_of(entries, _ORACLE, span_length)
    return accuracy_cells(right, fixed, oracle, method in (_FIXED, _ORACLE))


def accuracy_cells(
    right: np.ndarray | None, fixed: np.ndarray | None, oracle: np.ndarray | None, is_reference: bool
) -> list[str]:
    """Accuracy, distance from the best fixed weights and recovered headroom, as text; see `accuracy_table`.

    Args:
        right, fixed, oracle (`np.ndarray` of shape `(seeds, questions)`): of a method, of the best fixed weights and of
            the oracle, on the same questions; `None` where they were not measured.
        is_reference (`bool`): the method is one of the two, so that only its accuracy says anything.
    """
    if right is None:
        return ["", "", ""]
    cells = [_mean_told(right.mean(1)), "", ""]
    if fixed is None or oracle is None or is_reference:
        return cells
    low, high = paired_bootstrap([right, fixed], lambda a, b: a - b)
    cells[1] = f"{right.mean() - fixed.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    room = oracle.mean() - fixed.mean()
    if room >= LEAST_ROOM:
        low, high = paired_bootstrap([right, fixed, oracle], _headroom)
        cells[2] = f"{_headroom(right.mean(), fixed.mean(), oracle.mean()):.2f} [{low:.2f}, {high:.2f}]"
    return cells


def _headroom(accuracy: float, fixed: float, oracle: float) -> float:
    return (accuracy - fixed) / (oracle - fixed) if oracle > fixed else float("nan")


def accuracy_picture(entries: Entries, span_lengths: Sequence[int], path: Path) -> None:
    """Bars of accuracy a method, with a dot a seed."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(run.method for run, _ in entries))
    figure = Figure(figsize=(1.2 + 4.2 * len(span_lengths), 0.9 + 0.3 * len(methods)), layout="constrained")
    for axes, length in zip(figure.subplots(1, len(span_lengths), squeeze=False)[0], span_lengths, strict=True):
        for place, method in enumerate(methods):
            right = right_of(entries, method, length)
            if right is None:
                continue
            by_seed = right.mean(1)
            axes.barh(place, by_seed.mean(), color="#0f9fb5" if len(by_seed) > 1 else "#9aa5a8")
            if len(by_seed) > 1:
                axes.plot(by_seed, [place] * len(by_seed), "o", color="black", markersize=3)
        axes.set(xlim=(0, 1), xlabel="right answers", title=f"span length {length}")
        axes.set_yticks(range(len(methods)), methods if length == span_lengths[0] else [""] * len(methods))
        axes.invert_yaxis()
    save_figure(figure, path)
