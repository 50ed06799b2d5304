"""Tables and the picture of the study of several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_rlae.reports import save_figure
from hf_rlae.reports.pictures import colour_of
from tests.studies.rlae_tables import StudyTable

Entries = Sequence[Mapping[str, Any]]

KINDS = ("weighted sum", "normalised, then summed", "constraint")
_STYLES = (("o", "-", (5, 4)), ("s", "none", (-5, -9)), ("D", "none", (5, -9)))
"""Marker, line, and where the label is, by kind."""


def kind_of(entry: Mapping[str, Any]) -> str:
    """Which of `KINDS` a run is."""
    if entry["multiplier"] is not None:
        return KINDS[2]
    return KINDS[1] if entry["combination"].endswith("normalised") else KINDS[0]


def by_combination(entries: Entries) -> dict[str, list[Mapping[str, Any]]]:
    """Runs of one family, by what they learned from, in their order."""
    return {
        name: [entry for entry in entries if entry["combination"] == name]
        for name in dict.fromkeys(entry["combination"] for entry in entries)
    }


def frontier_table(entries: Entries) -> StudyTable:
    """Means over seeds, with the range where there are several: held-out, and in the last third of the rollouts."""
    headings = ["learned from", "right", "small", "right, in training", "small, in training", "multiplier"]
    has_kl = all("kl" in entry for entry in entries)
    rows = []
    for name, runs in by_combination(entries).items():
        trained = [shown([run["trained"][each] for run in runs]) for each in ("right", "small")]
        multipliers = [run["multiplier"] for run in runs if run["multiplier"] is not None]
        row = [name, *(shown([run[each] for run in runs]) for each in ("right", "small")), *trained]
        row.append(shown(multipliers, 1) if multipliers else "")
        rows.append((*row, *([shown([run["kl"] for run in runs])] if has_kl else [])))
    return StudyTable((*headings, *(["KL"] if has_kl else [])), tuple(rows))


def pairs_table(entries: Entries) -> StudyTable:
    """Right answers by what a policy learned from."""
    rows = []
    for name in dict.fromkeys(entry["judge"] for entry in entries):
        runs = [entry for entry in entries if entry["judge"] == name]
        accuracies = [run["judge_accuracy"] for run in runs if "judge_accuracy" in run]
        rows.append((name, shown([run["right"] for run in runs]), shown(accuracies) if accuracies else ""))
    return StudyTable(("learned from", "right", "judge right on held-out pairs"), tuple(rows))


def shown(values: Sequence[float], digits: int = 3) -> str:
    """The mean of several runs and their range, or the value of one.

    Example:

    >>> shown([0.5]), shown([0.5, 0.75])
    ('0.500', '0.625 (0.500 to 0.750)')
    """
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def frontier_picture(entries: Entries, path: Path) -> None:
    """Small answers over right ones, held-out, one panel a family: means over seeds, with a thin dot a run.

    The label of a sum is the weight of `small`; the weight of `right` is 1 less it.
    """
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(entry["family"] for entry in entries))
    figure = Figure(figsize=(1 + 5.0 * len(families), 4.6), layout="constrained")
    for axes, family in zip(figure.subplots(1, len(families), squeeze=False)[0], families, strict=True):
        groups = by_combination([entry for entry in entries if entry["family"] == family])
        for place, kind in enumerate(KINDS):
            chosen = [runs for runs in groups.values() if kind_of(runs[0]) == kind]
            means = np.array([[np.mean([run[each] for run in runs]) for each in ("right", "small")] for runs in chosen])
            single = np.array([[run["right"], run["small"]] for runs in chosen for run in runs])
            if not len(chosen):
                continue
            colour = colour_of(place)
            axes.plot(single[:, 0], single[:, 1], ".", color=colour, markersize=4, alpha=0.5)
            marker, line, offset = _STYLES[place]
            axes.plot(means[:, 0], means[:, 1], linestyle=line, marker=marker, color=colour, label=kind, linewidth=1)
            for point, runs in zip(means, chosen, strict=True):
                label = _label(runs[0])
                # of constraints on different rewards, which may end at one point, labels are on different sides
                side = (-5, -16) if label.startswith("right") else offset
                style: dict[str, Any] = {"fontsize": 7, "color": colour, "ha": "right" if side[0] < 0 else "left"}
                axes.annotate(label, point, xytext=side, textcoords="offset points", **style)
        axes.set(xlabel="right answers", ylabel="smallness of answers", title=family)
        axes.margins(x=0.18, y=0.1)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, path)


def _label(entry: Mapping[str, Any]) -> str:
    """The weight of `small`, or the constraint."""
    name = str(entry["combination"])
    if kind_of(entry) == KINDS[2]:
        return name.replace(" at least ", " >= ")
    return name.split(" + ")[1].split()[0]
