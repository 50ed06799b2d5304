"""Frontiers of reward and KL: tables, pictures and text samples of the study of CORY."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_rlae.files import write_whole
from hf_rlae.reports import colour_of, save_figure
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.cory_watch import COLUMNS
from tests.studies.rlae_tables import StudyTable

Entries = Sequence[Mapping[str, Any]]

WINDOW = 3
"""Evaluations that are averaged, rewards and KLs alike."""

SHARES = (0.25, 0.5, 0.75)
"""The rewards at which KLs are compared: from the base's reward up to what the reference reaches."""

REWARD, KL, TEXT_KL, ENTROPY = (COLUMNS.index(n) for n in ("reward", "kl", "text_kl", "entropy"))


def smoothed(curve: Sequence[Sequence[float]], window: int = WINDOW) -> np.ndarray:
    """Means of each evaluation and those before it, `window` in all (fewer at the beginning).

    Args:
        curve (sequence of shape `(E, len(COLUMNS))`): evaluations of an agent.

    Returns:
        `np.ndarray` of the same shape.

    Example:

    >>> smoothed([[0.0], [1.0], [2.0], [6.0]], window=3)[:, 0].tolist()
    [0.0, 0.5, 1.0, 3.0]
    """
    rows = np.asarray(curve, dtype=float)
    return np.array([rows[max(0, end - window) : end].mean(0) for end in range(1, len(rows) + 1)])


def kl_at(curve: Sequence[Sequence[float]], reward: float) -> float:
    """The KL (nats a token) when the smoothed reward first reaches a value; NaN if it never does.

    Between two evaluations both are taken to change evenly, so that agents which learn fast are not read off later.

    Args:
        curve (sequence of shape `(E, len(COLUMNS))`): evaluations of an agent.
        reward (`float`): to be reached.

    Example:

    >>> rising = [[step, 0.1 * step, 0.5 * step, 0, 0, 0] for step in range(9)]
    >>> round(kl_at(rising, 0.35), 3), kl_at(rising, 2.0)
    (1.75, nan)
    """
    even = smoothed(curve)
    reached = np.flatnonzero(even[:, REWARD] >= reward)
    if not len(reached):
        return float("nan")
    at = int(reached[0])
    if at == 0:
        return float(even[0, KL])
    before, after = even[at - 1], even[at]
    share = (reward - before[REWARD]) / (after[REWARD] - before[REWARD])
    return float(before[KL] + share * (after[KL] - before[KL]))


def run_kl_at(entry: Mapping[str, Any], reward: float) -> float:
    """Of a run: the mean over its agents; NaN unless all of them reach it."""
    return float(np.mean([kl_at(curve, reward) for curve in entry["curves"].values()]))


def reward_levels(entries: Entries, reference: str) -> list[float]:
    """Rewards at which methods are compared: `SHARES` of the way from the base to what the reference reaches.

    That is the median over its runs, at the middle learning rate, of the highest smoothed reward.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
        reference (`str`): a method.
    """
    rates = sorted({entry["rate"] for entry in entries})
    own = [e for e in entries if e["method"] == reference and e["rate"] == rates[len(rates) // 2]]
    curves = [smoothed(curve)[:, REWARD] for entry in own for curve in entry["curves"].values()]
    low, high = np.mean([curve[0] for curve in curves]), np.median([curve.max() for curve in curves])
    return [round(float(low + share * (high - low)), 3) for share in SHARES]


def _chosen(entries: Entries, method: str, rate: float) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["method"] == method and entry["rate"] == rate]


def spread(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """Mean and standard deviation, as text."""
    given = np.asarray(values)
    return f"{given.mean():.{digits}f}" + (f" ± {given.std(ddof=1):.{digits}f}" if len(given) > 1 else "")


def _groups(entries: Entries) -> list[tuple[str, float]]:
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    rates = sorted({entry["rate"] for entry in entries})
    return [(method, rate) for rate in rates for method in methods if _chosen(entries, method, rate)]


def frontier_table(entries: Entries, reference: str) -> StudyTable:
    """KL when the reward first reaches each level: mean and deviation over seeds, and how many runs reach it.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
        reference (`str`): the method whose rewards set the levels.
    """
    levels = reward_levels(entries, reference)
    rows = []
    for method, rate in _groups(entries):
        runs = _chosen(entries, method, rate)
        cells = []
        for level in levels:
            found = [kl for entry in runs if not np.isnan(kl := run_kl_at(entry, level))]
            cells.append((f"{spread(found)} " if found else "") + f"({len(found)} of {len(runs)})")
        rows.append((method, f"{rate:g}", *cells))
    return StudyTable(("method", "rate", *(f"KL at reward {level:.3f}" for level in levels)), tuple(rows))


def ratio_table(entries: Entries, reference: str) -> StudyTable:
    """The KL of each method over the reference's, at equal reward and learning rate; below 1 is better.

    Means are over the seeds that reach the reward, with a bootstrap interval over these (95 %); where fewer than two
    runs of either reach it there is none.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
        reference (`str`): a method.
    """
    levels = reward_levels(entries, reference)
    rows = []
    for method, rate in _groups(entries):
        if method == reference:
            continue
        cells = [
            ratio_cell(*([run_kl_at(e, level) for e in _chosen(entries, name, rate)] for name in (method, reference)))
            for level in levels
        ]
        rows.append((method, f"{rate:g}", *cells))
    return StudyTable(("method", "rate", *(f"KL over {reference}'s at {level:.3f}" for level in levels)), tuple(rows))


def ratio_cell(own: Sequence[float], other: Sequence[float]) -> str:
    """The ratio of two means over the runs that reach a reward, with a 95 % interval; empty if fewer than two do.

    Args:
        own (`Sequence[float]`), other (`Sequence[float]`): a KL a run, NaN where it does not reach the reward.
    """
    columns = [np.array([[kl] for kl in values if not np.isnan(kl)]) for values in (own, other)]
    if min(map(len, columns)) < 2 or columns[1].min() <= 0:
        return ""
    low, high = paired_bootstrap(columns, lambda a, b: a / b)
    return f"{columns[0].mean() / columns[1].mean():.2f} [{low:.2f}, {high:.2f}]"


def last_of(entry: Mapping[str, Any]) -> np.ndarray:
    """Smoothed values at the end of a run, of shape `(agents, len(COLUMNS))`."""
    return np.array([smoothed(curve)[-1] for curve in entry["curves"].values()])


def sensitivity_table(entries: Entries) -> StudyTable:
    """Reward and KL at the end of training, by learning rate, and how much they vary with it.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
    """
    rates = sorted({entry["rate"] for entry in entries})
    rows = []
    for method in dict.fromkeys(entry["method"] for entry in entries):
        row, means = [method], []
        for rate in rates:
            ends = np.array([last_of(entry).mean(0) for entry in _chosen(entries, method, rate)])
            row += [spread(ends[:, REWARD]), spread(ends[:, KL])] if len(ends) else ["", ""]
            means += [ends.mean(0)] if len(ends) else []
        both = np.array(means)
        row.append(f"{np.ptp(both[:, REWARD]):.3f}")
        row.append(f"{both[:, KL].max() / both[:, KL].min():.1f}" if both[:, KL].min() > 0 else "")
        rows.append(tuple(row))
    headings = [f"{rate:g}: {name}" for rate in rates for name in ("reward", "KL")]
    return StudyTable(("method", *headings, "reward: range", "KL: largest / smallest"), tuple(rows))


def agents_table(entries: Entries) -> StudyTable:
    """Each agent alone as pioneer, at the end of training: reward, KL a token and a text, and entropy.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
    """
    rows = []
    for method, rate in _groups(entries):
        runs = _chosen(entries, method, rate)
        for agent in runs[0]["curves"]:
            ends = np.array([smoothed(entry["curves"][agent])[-1] for entry in runs])
            shown = [spread(ends[:, column]) for column in (REWARD, KL, TEXT_KL, ENTROPY)]
            rows.append((method, f"{rate:g}", agent, *shown))
    return StudyTable(("method", "rate", "agent", "reward", "KL, token", "KL, text", "entropy"), tuple(rows))


def compute_table(entries: Entries, reference: str) -> StudyTable:
    """Rollouts, optimizer steps and CPU seconds of training, without evaluations, against the reference.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
        reference (`str`): a method.
    """
    of_reference = [entry["training_seconds"] for entry in entries if entry["method"] == reference]
    rows = []
    for method in dict.fromkeys(entry["method"] for entry in entries):
        runs = [entry for entry in entries if entry["method"] == method]
        seconds = [entry["training_seconds"] for entry in runs]
        counts = (str(runs[0]["rollouts"]), str(runs[0]["steps"]))
        rows.append((method, *counts, spread(seconds, 1), f"{np.mean(seconds) / np.mean(of_reference):.2f}"))
    return StudyTable(("method", "rollouts", "steps", "CPU seconds", f"over {reference}"), tuple(rows))


def frontier_picture(entries: Entries, path: Path) -> None:
    """KL against reward along training, one panel a learning rate: means over runs, bands of one deviation.

    A line goes as far as all runs of its method do.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
        path (`Path`): of the picture.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    rates = sorted({entry["rate"] for entry in entries})
    curves = [smoothed(curve) for entry in entries for curve in entry["curves"].values()]
    low, high = np.mean([curve[0, REWARD] for curve in curves]), max(curve[:, REWARD].max() for curve in curves)
    levels = np.linspace(low, high, 60)[1:]
    figure = Figure(figsize=(1 + 3.6 * len(rates), 4.0), layout="constrained")
    for axes, rate in zip(figure.subplots(1, len(rates), squeeze=False)[0], rates, strict=True):
        for place, method in enumerate(methods):
            runs = _chosen(entries, method, rate)
            kls = np.array([[run_kl_at(entry, level) for level in levels] for entry in runs]).reshape(-1, len(levels))
            shown = ~np.isnan(kls).any(0) if len(runs) else np.zeros(len(levels), dtype=bool)
            mean, deviation = kls[:, shown].mean(0), kls[:, shown].std(0)
            label = method if rate == rates[0] else None
            axes.plot(levels[shown], mean, color=colour_of(place), label=label, linewidth=1.5)
            axes.fill_between(levels[shown], mean - deviation, mean + deviation, color=colour_of(place), alpha=0.15)
        axes.set(xlabel="reward, alone as pioneer", title=f"learning rate {rate:g}", ylim=(0, None))
        axes.grid(alpha=0.3)
        if rate == rates[0]:
            axes.set(ylabel="KL to the base, nats a token")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    save_figure(figure, path)


def write_samples(entries: Entries, reference: str, path: Path) -> None:
    """Texts of the base, of the run with the largest KL, and of the run with the smallest KL that learned.

    A run has learned if its reward at the end is at least the middle level of `reward_levels`.

    Args:
        entries (`Sequence[Mapping]`): runs of one task.
        reference (`str`): see `reward_levels`.
        path (`Path`): a Markdown file.
    """
    level = reward_levels(entries, reference)[len(SHARES) // 2]
    learned = [entry for entry in entries if last_of(entry)[:, REWARD].min() >= level] or list(entries)
    chosen = {
        "largest KL": max(entries, key=lambda entry: last_of(entry)[:, KL].max()),
        "smallest KL of those that learned": min(learned, key=lambda entry: last_of(entry)[:, KL].max()),
    }
    parts = [_quoted("Before training", entries[0]["prompts"], entries[0]["base_samples"])]
    for title, entry in chosen.items():
        ends = dict(zip(entry["curves"], last_of(entry), strict=True))
        agent = max(ends, key=lambda name: ends[name][KL])
        told = (
            f"{entry['method']}, learning rate {entry['rate']:g}, seed {entry['seed']}, {agent}: reward "
            f"{ends[agent][REWARD]:.3f}, KL {ends[agent][KL]:.3f} nats a token, entropy {ends[agent][ENTROPY]:.2f}"
        )
        parts.append(_quoted(f"The {title}: {told}", entry["prompts"], entry["samples"][agent]))
    write_whole(path, "\n".join(parts))


def _quoted(title: str, prompts: Sequence[str], texts: Sequence[str]) -> str:
    lines = [f"**{title}**", ""]
    for prompt, text in zip(prompts, texts, strict=True):
        lines += [f"> {' '.join(prompt.split())} ... {' '.join(text.split())}", ">"]
    return "\n".join([*lines[:-1], ""])
