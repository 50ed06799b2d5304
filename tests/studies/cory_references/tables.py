"""Tables and pictures of the study: the KL at equal reward alone, in role, and as a team."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.studies.cory_references.families import FAMILIES, GRPO, PPO
from tests.studies.cory_references.watch import ALONE, IN_ROLE, OWN_ANSWER, TEAM, UNTRAINED
from tests.studies.cory_tables import KL, REWARD, ratio_cell, run_kl_at, smoothed, spread
from tests.studies.rlae_tables import StudyTable

Entries = Sequence[Mapping[str, Any]]

SHARES = (0.15, 0.3, 0.45, 0.6)
"""The rewards at which KLs are compared: from the base's reward up to what PPO reaches alone, in the median run."""

SUFFIXES = {
    ALONE: {"": ALONE},
    IN_ROLE: {"": IN_ROLE, f", {UNTRAINED}": f"{IN_ROLE}, {UNTRAINED}", f", {OWN_ANSWER}": f"{IN_ROLE}, {OWN_ANSWER}"},
    TEAM: {"": TEAM, f", {UNTRAINED}": f"{TEAM}, {UNTRAINED}", f", {OWN_ANSWER}": f"{TEAM}, {OWN_ANSWER}"},
}
"""For each table, what its rows look at: the family's own view, and the controls."""


def viewed(entries: Entries, table: str) -> list[dict[str, Any]]:
    """The runs as one table looks at them, in the form that `cory_tables` reads; a control is a method of its own.

    A single agent answers alone in every table: it has no other role.

    Args:
        entries (`Sequence[Mapping]`): runs.
        table (`str`): `ALONE`, `IN_ROLE` or `TEAM`.
    """
    found = []
    for suffix, view in SUFFIXES[table].items():
        for entry in entries:
            views = entry["views"]
            curves = views.get(view, views[ALONE] if view in (IN_ROLE, TEAM) else None)
            if curves is not None:
                found.append({**entry, "method": entry["method"] + suffix, "curves": curves})
    order = [f"{family}{suffix}" for family in FAMILIES for suffix in SUFFIXES[table]]
    return sorted(found, key=lambda entry: order.index(entry["method"]))


def with_most_seeds(entries: Entries) -> list[Mapping[str, Any]]:
    """The runs of the families that were run with the most seeds.

    Args:
        entries (`Sequence[Mapping]`): runs.

    Example:

    >>> found = with_most_seeds([{"method": "a", "seed": 0}, {"method": "a", "seed": 1}, {"method": "b", "seed": 0}])
    >>> [entry["method"] for entry in found]
    ['a', 'a']
    """
    seeds: dict[str, set[int]] = {}
    for entry in entries:
        seeds.setdefault(entry["method"], set()).add(entry["seed"])
    most = max(map(len, seeds.values()), default=0)
    return [entry for entry in entries if len(seeds[entry["method"]]) == most]


def reward_levels(entries: Entries) -> list[float]:
    """Rewards at which KLs are compared, in all tables: `SHARES` of the way from the base to what PPO reaches alone.

    Args:
        entries (`Sequence[Mapping]`): runs.
    """
    curves = [smoothed(curve)[:, REWARD] for entry in entries if entry["method"] == PPO for curve in alone(entry)]
    if not curves:
        return []
    low, high = np.mean([curve[0] for curve in curves]), np.median([curve.max() for curve in curves])
    return [round(float(low + share * (high - low)), 3) for share in SHARES]


def alone(entry: Mapping[str, Any]) -> list[Any]:
    """The curves of a run's agents, alone."""
    return list(entry["views"][ALONE].values())


def kl_table(entries: Entries, table: str) -> StudyTable:
    """The KL at each reward, and over that of the family's reference alone at the same learning rate (95 %).

    Means are over the runs that reach the reward (all agents of a run have to), with their number; intervals are
    bootstraps over seeds.

    Args:
        entries (`Sequence[Mapping]`): runs.
        table (`str`): `ALONE`, `IN_ROLE` or `TEAM`.
    """
    levels, rows = reward_levels(entries), []
    shown, single = viewed(entries, table), viewed(entries, ALONE)
    for rate in sorted({entry["rate"] for entry in entries}):
        for method in dict.fromkeys(entry["method"] for entry in shown):
            own = [entry for entry in shown if (entry["method"], entry["rate"]) == (method, rate)]
            if not own:
                continue
            name = own[0]["reference"]
            reference = [entry for entry in single if (entry["method"], entry["rate"]) == (name, rate)]
            row = [method, f"{rate:g}"]
            for level in levels:
                kls = [run_kl_at(entry, level) for entry in own]
                reached = [kl for kl in kls if not np.isnan(kl)]
                row.append((f"{np.mean(reached):.3f} " if reached else "") + f"({len(reached)} of {len(kls)})")
                others = [run_kl_at(entry, level) for entry in reference]
                row.append("1" if method == name else ratio_cell(kls, others))
            rows.append(tuple(row))
    headings = [text for level in levels for text in (f"KL at {level:.3f}", f"over {PPO}'s or {GRPO}'s")]
    return StudyTable((table, "rate", *headings), tuple(rows))


def end_table(entries: Entries) -> StudyTable:
    """Reward and KL at the end of training, in every view: mean and deviation over seeds.

    Args:
        entries (`Sequence[Mapping]`): runs.
    """
    views = list(dict.fromkeys(view for entry in entries for view in entry["views"]))
    views.sort(key=[view for table in SUFFIXES.values() for view in table.values()].index)
    rows = []
    for rate in sorted({entry["rate"] for entry in entries}):
        for method in FAMILIES:
            runs = [entry for entry in entries if (entry["method"], entry["rate"]) == (method, rate)]
            if not runs:
                continue
            row = [method, f"{rate:g}", str(len(runs))]
            for view in views:
                ends = [
                    np.mean([smoothed(curve)[-1] for curve in entry["views"][view].values()], axis=0)
                    for entry in runs
                    if view in entry["views"]
                ]
                values = np.array(ends)
                row.append(f"{spread(values[:, REWARD])}, {values[:, KL].mean():.3f}" if len(values) else "")
            rows.append(tuple(row))
    return StudyTable(("right, KL", "rate", "runs", *views), tuple(rows))


def compute_table(entries: Entries) -> StudyTable:
    """Texts, optimizer steps and CPU seconds of a training, without evaluations, against the reference's.

    Args:
        entries (`Sequence[Mapping]`): runs.
    """
    rows = []
    for method in dict.fromkeys(entry["method"] for entry in viewed(entries, ALONE)):
        runs = [entry for entry in entries if entry["method"] == method]
        seconds = [entry["training_seconds"] for entry in runs]
        reference = [entry["training_seconds"] for entry in entries if entry["method"] == runs[0]["reference"]]
        counts = [str(runs[0][name]) for name in ("texts_an_agent", "texts", "steps")]
        ratio = f"{np.mean(seconds) / np.mean(reference):.2f}" if reference else ""
        rows.append((method, str(len(runs)), *counts, spread(seconds, 1), ratio))
    headings = ("family", "runs", "texts an agent", "texts in all", "steps", "CPU seconds", f"over {PPO}'s or {GRPO}'s")
    return StudyTable(headings, tuple(rows))
