"""Tables and the picture of right answers against what members cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rlae.reports import save_figure
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.rlae_tables import StudyTable, right_answers_of

if TYPE_CHECKING:
    from tests.studies.cost.run import CostRun

Entries = Sequence[tuple["CostRun", dict[str, Any]]]
Key = tuple[str, float, str]
"""Method, price and way of decoding."""

_LABELS = {"": "", "mixed": "all members mixed", "largest weight": "largest weight", "drawn": "drawn per token"}
_OTHERS = (
    ("picker", "k = 1", "D", "black", "picker, k = 1"),
    ("picker", "k = 2", "d", "grey", "picker, k = 2"),
    ("thrifty oracle", "", "*", "#3d405b", "thrifty oracle"),
    ("oracle", "", "P", "#81b29a", "oracle"),
    (" alone", "", "x", "#9aa5a8", "one member alone"),
    ("equal weights", "", "+", "#9aa5a8", "equal weights"),
)
"""Method (or its end), way, mark, colour and label of single points."""
_TICKS = (20, 50, 100, 200, 300)
_MARKS = {"mixed": ("s", "#9fc9d1"), "largest weight": ("o", "#0f9fb5"), "drawn": ("^", "#e07a5f")}


@dataclass(frozen=True)
class Point:
    """What one method in one way has found, over its seeds.

    Attributes:
        right (`np.ndarray` of shape `(seeds, questions)`): 1 for a right answer.
        tokens (`np.ndarray` of shape `(seeds, M)`): mean member-tokens of a text.
    """

    right: np.ndarray
    tokens: np.ndarray

    def cost(self, relative: Sequence[float]) -> np.ndarray:
        """Mean cost of a text, of each seed, in tokens of a member with the relative price 1."""
        return self.tokens @ np.array(relative)


def points_of(entries: Entries, kind: str) -> dict[Key, Point]:
    """The points of one kind of questions, in the order of the runs."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for run, outcome in entries:
        for way, answered in outcome["answers"].get(kind, {}).items():
            found.setdefault((run.method, run.price, way), []).append(answered)
    return {
        key: Point(
            right_answers_of([one["right"] for one in seeds]),
            np.array([one["tokens"] for one in seeds]),
        )
        for key, seeds in found.items()
    }


def label_of(key: Key) -> str:
    """How a point is called."""
    method, price, way = key
    name = f"router, price {price:g}" if method == "router" else method
    return ", ".join(part for part in (name, _LABELS.get(way, way)) if part)


def cost_table(entries: Entries, kind: str, relative: Sequence[float]) -> StudyTable:
    """One row a method and way: right answers with 95 % intervals, member-tokens and cost of a text."""
    rows = []
    for key, point in points_of(entries, kind).items():
        low, high = paired_bootstrap([point.right], lambda share: share)
        tokens = point.tokens.mean(0)
        rows.append(
            (
                label_of(key),
                f"{point.right.mean():.3f} [{low:.3f}, {high:.3f}]",
                f"{tokens.sum():.1f}",
                " ".join(f"{one:.1f}" for one in tokens),
                f"{point.cost(relative).mean():.1f}",
            )
        )
    headings = ("weights", "right", "member-tokens of a text", "of each member", "cost of a text")
    return StudyTable(headings, tuple(rows))


def _is(method: str, wanted: str) -> bool:
    return method.endswith(wanted) if wanted.startswith(" ") else method == wanted


def cost_picture(entries: Entries, kinds: Sequence[str], relative: Sequence[float], path: Path) -> None:
    """Right answers against the cost of a text, a panel for each kind of questions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * len(kinds), 4.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        points = points_of(entries, kind)
        for way, (mark, colour) in _MARKS.items():
            line = [(key, point) for key, point in points.items() if key[0] == "router" and key[2] == way]
            line.sort(key=lambda entry: entry[0][1])
            costs = [float(point.cost(relative).mean()) for _, point in line]
            shares = [float(point.right.mean()) for _, point in line]
            axes.plot(costs, shares, mark, linestyle="-", color=colour, label=f"router, {_LABELS[way]}")
            if way == "drawn":
                for (key, _), cost, share in zip(line, costs, shares, strict=True):
                    axes.annotate(f"{key[1]:g}", (cost, share), (4, 4), textcoords="offset points", fontsize=8)
        for method, way, mark, colour, label in _OTHERS:
            chosen = [point for key, point in points.items() if key[2] == way and _is(key[0], method)]
            costs = [float(point.cost(relative).mean()) for point in chosen]
            shares = [float(point.right.mean()) for point in chosen]
            axes.plot(costs, shares, mark, linestyle="", color=colour, label=label, clip_on=False)
        axes.set(xscale="log", xlim=(14, 400), ylim=(0, 1.02), ylabel="right answers", title=f"questions: {kind}")
        axes.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
        axes.minorticks_off()
        axes.set_xlabel("cost of a text, in tokens of a cheap member")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8
    )
    save_figure(figure, path)
