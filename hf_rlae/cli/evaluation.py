"""The work of `hf-rlae evaluate`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from hf_rlae.cli.decoding import generation_options
from hf_rlae.cli.loading import build_ensemble
from hf_rlae.evaluation import EvaluationReport, evaluate
from hf_rlae.reports.member_names import wrapped_name
from hf_rlae.tasks import get_task

_FILE_WIDTH = 400
"""Lines of files and pipes are whole, so that they can be searched."""
_NAME_WIDTH = 20
"""Of a method's name, where the methods are columns."""


def show(args: argparse.Namespace) -> None:
    """Evaluates and prints one table per task; in several processes, the first one prints.

    Args:
        args (`argparse.Namespace`): the checked arguments of `hf-rlae evaluate`.

    Raises:
        HfRlaeError: members, tasks or methods that cannot be used.
    """
    for name in args.tasks:
        get_task(name)  # raises before members are loaded
    if args.device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    ensemble = build_ensemble(args)
    options: dict[str, Any] = {"num_few_shot": args.few_shot, "prompt_format": args.prompt_format}
    settings = generation_options(args)
    report = evaluate(
        ensemble,
        args.tasks,
        methods=args.methods,
        members=not args.no_members,
        scoring=args.scoring,
        split=args.split,
        source=args.sources,
        validation=args.validation,
        option_form=args.option_form,
        limit=args.limit,
        batch_size=args.batch_size,
        max_new_tokens=settings.pop("max_new_tokens"),
        seed=args.seed or 0,
        output_dir=args.output,
        generation_kwargs=settings,
        **{name: value for name, value in options.items() if value is not None},
    )
    if os.environ.get("RANK", "0") == "0":
        print_report(report)
        if args.output is not None:
            Console(file=sys.stdout).print(f"The results are in {args.output}", highlight=False)


def _table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """A table whose first line is its head."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for at, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if at else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def print_report(report: EvaluationReport) -> None:
    """Prints one table per task and the notes; on a narrow terminal, methods are columns."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    unbounded = console.options.update(width=10_000)  # else the measure is that of the terminal
    for task, lines in report.tables().items():
        table = _table(task, lines)
        if console.measure(table, options=unbounded).maximum <= console.width:
            console.print(table)
            continue
        headings, *rows = lines  # on a narrow terminal, methods are columns, as many as fit beside each other
        count = max(1, (console.width - max(map(len, headings)) - 4) // (_NAME_WIDTH + 3))
        for start in range(0, len(rows), count):
            names, *values = zip(headings, *rows[start : start + count], strict=True)
            names = (names[0], *(wrapped_name(name, _NAME_WIDTH) for name in names[1:]))
            console.print(_table(task, [names, *values]))
    for note in report.notes:
        console.print(note, highlight=False)
