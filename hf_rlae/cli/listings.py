"""Tables of what is registered."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Column, Table

from hf_rlae.ensemble.mixing import mixings
from hf_rlae.objectives import objectives
from hf_rlae.policies import policies
from hf_rlae.rewards import list_rewards
from hf_rlae.tasks import Task, list_tasks
from hf_rlae.vocabulary.grain import AUTO_GRAIN, GRAINS


def show_tasks() -> None:
    """Prints a table with one line per task."""
    columns = [Column(name, overflow="fold") for name in ("source", "licence", "reward", "splits")]
    table = Table(Column("task", no_wrap=True), *columns, box=box.SIMPLE_HEAD)
    for task in list_tasks():
        table.add_row(task.name, _source(task), task.licence, task.reward or "-", ", ".join(task.splits))
    _print(table)


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
    }
    table = Table(Column("kind", no_wrap=True), Column("names", overflow="fold"), box=box.SIMPLE_HEAD)
    for kind, known in names.items():
        table.add_row(kind, ", ".join(known))
    _print(table)


def _print(table: Table) -> None:
    # lines of files and pipes are not wrapped, so that they can be searched
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
