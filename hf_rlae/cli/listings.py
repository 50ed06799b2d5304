"""Tables of what is registered."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Column, Table

from hf_rlae.embedded import embedded_names
from hf_rlae.ensemble.mixing import mixings
from hf_rlae.objectives import objectives
from hf_rlae.policies import policies
from hf_rlae.reports.member_names import wrapped_name
from hf_rlae.rewards import list_rewards
from hf_rlae.tasks import Task, list_tasks
from hf_rlae.tasks.definition import UNKNOWN_LICENCE
from hf_rlae.vocabulary.grain import AUTO_GRAIN, GRAINS

_WIDE = 130
"""Columns of a terminal in which a task is one line."""


def show_tasks() -> None:
    """Prints a table with one line per task, or, on a narrow terminal, with a few."""
    console = _console()
    is_wide = console.width >= _WIDE
    names = ("source", "licence", "reward", "splits") if is_wide else ("source, licence, reward", "splits")
    table = Table(Column("task", no_wrap=True), *names, box=box.SIMPLE_HEAD)
    for task in list_tasks():
        row = [_source(task), _licence(task), task.reward or "-"]
        if not is_wide:
            row = ["\n".join([wrapped_name(row[0], 26), row[1], f"reward: {row[2]}"])]
        table.add_row(task.name, *row, ", ".join(task.splits))
    console.print(table)


def _licence(task: Task) -> str:
    is_told = task.licence != UNKNOWN_LICENCE or task.hub_id is not None
    return task.licence if is_told else "not stated"


def _source(task: Task) -> str:
    source = task.default_source or task.hub_id
    return source or ("generated" if task.generate else "a file of yours")


def show_names() -> None:
    """Prints a table with one line per kind of name."""
    names: dict[str, Iterable[str]] = {
        "policies": policies,
        "mixings": mixings,
        "grains": (*GRAINS, AUTO_GRAIN),
        "objectives": objectives,
        "rewards": list_rewards(),
        "tasks": [task.name for task in list_tasks()],
        "embedded members": embedded_names("members"),
        "embedded policies": embedded_names("policies"),
    }
    table = Table(Column("kind", no_wrap=True), "names", box=box.SIMPLE_HEAD)
    for kind, known in names.items():
        table.add_row(kind, ", ".join(known))
    _console().print(table)


def _console() -> Console:
    # lines of files and pipes are not wrapped, so that they can be searched
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 400)
