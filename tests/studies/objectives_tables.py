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
_MARKERS = ("o", "s", "D")


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
    """Small answers over right ones, held-out, one panel a family: means over seeds, with a thin dot a run."""
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
            line = "-" if kind == KINDS[0] else ""
            axes.plot(means[:, 0], means[:, 1], line, marker=_MARKERS[place], color=colour, label=kind, linewidth=1)
            for (right, small), runs in zip(means, chosen, strict=True):
                label = runs[0]["combination"].removesuffix(", normalised")
                axes.annotate(label, (right, small), xytext=(5, 4), textcoords="offset points", fontsize=6)
        axes.set(xlabel="right answers", ylabel="smallness of answers", title=family)
        axes.margins(x=0.18, y=0.1)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, path)
