"""The table and the picture of the study of real members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_rlae.reports import save_figure
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.rlae_tables import StudyTable

Entries = Sequence[Mapping[str, Any]]


def rewards_of(entries: Entries, method: str) -> np.ndarray:
    """Of shape `(seeds, openings)`."""
    return np.array([entry["rewards"] for entry in entries if entry["method"] == method])


def bits_of(entries: Entries, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Bits of shape `(seeds, passages)`, and the passages' bytes; of one seed where the method has one likelihood."""
    found = [entry for entry in entries if entry["method"] == method and "bits" in entry]
    return np.array([entry["bits"] for entry in found]), np.array(found[0]["bytes"])


def bits_per_byte(bits: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """One number a seed: all bits by all bytes."""
    return bits.sum(1) / sizes.sum()


def comparison_table(entries: Entries, fixed: Mapping[str, str]) -> StudyTable:
    """One row a method: mean reward and bits per byte, and how much better than the best fixed weights each is.

    Means are over seeds, with the standard deviation over seeds; intervals are paired bootstraps, over openings and
    seeds, and over passages and seeds. Above the best fixed weights is better for rewards, below is for bits.

    Args:
        entries (`Sequence[Mapping]`): what runs found.
        fixed (`Mapping[str, str]`): the methods `"reward"` and `"likelihood"` that rewards and bits are compared with.
    """
    rows = []
    for method in dict.fromkeys(entry["method"] for entry in entries):
        row = [method, *_reward_cells(entries, method, fixed["reward"])]
        row += _bits_cells(entries, method, fixed["likelihood"])
        weights = np.mean([entry["weights"] for entry in entries if entry["method"] == method], axis=0)
        rows.append((*row, " / ".join(f"{weight:.2f}" for weight in weights)))
    headings = ("weights", "reward", "above best fixed", "bits per byte", "above best fixed", "mean weights")
    return StudyTable(headings, tuple(rows))


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


def _reward_cells(entries: Entries, method: str, fixed: str) -> list[str]:
    own, other = rewards_of(entries, method), rewards_of(entries, fixed)
    cell = _spread(own.mean(1))
    if method == fixed or not len(other):
        return [cell, ""]
    low, high = paired_bootstrap([own, other], lambda a, b: a - b)
    return [cell, f"{own.mean() - other.mean():+.4f} [{low:+.4f}, {high:+.4f}]"]


def _bits_cells(entries: Entries, method: str, fixed: str) -> list[str]:
    (own, sizes), (other, _) = bits_of(entries, method), bits_of(entries, fixed)
    values = bits_per_byte(own, sizes)
    if method == fixed:
        return [_spread(values), ""]
    scale = len(sizes) / sizes.sum()  # the bootstrap takes means over passages
    low, high = paired_bootstrap([own, other], lambda a, b: (a - b) * scale)
    difference = values.mean() - bits_per_byte(other, sizes).mean()
    return [_spread(values), f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"]


def comparison_picture(entries: Entries, path: Path) -> None:
    """Mean reward and bits per byte of each method, with a dot a seed."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    figure = Figure(figsize=(10, 0.9 + 0.32 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, method in enumerate(methods):
        by_seed = {left: rewards_of(entries, method).mean(1), right: bits_per_byte(*bits_of(entries, method))}
        for axes, values in by_seed.items():
            color = "#0f9fb5" if method.startswith("policy") else "#9aa5a8"
            axes.plot(values, [place] * len(values), "o", color=color, markersize=4, alpha=0.6)
            axes.plot([values.mean()], [place], "|", color="black", markersize=14)
    left.set(xlabel="mean reward (more is better)", yticks=range(len(methods)), yticklabels=methods)
    right.set(xlabel="bits per byte (fewer is better)", yticks=range(len(methods)), yticklabels=[""] * len(methods))
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
