"""The work of `hf-rlae evaluate`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from hf_rlae.cli.decoding import generation_options
from hf_rlae.cli.loading import build_ensemble
from hf_rlae.evaluation import EvaluationReport, evaluate
from hf_rlae.tasks import get_task

_WIDTH = 160
"""Of a table: a terminal with shorter lines breaks them between columns, and files have whole ones."""


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
        _print(report, args.output)


def _print(report: EvaluationReport, folder: str | None) -> None:
    console = Console(file=sys.stdout)
    console.width = max(console.width, _WIDTH)
    for task, (headings, *rows) in report.tables().items():
        table = Table(box=box.SIMPLE_HEAD, title=task, title_justify="left")
        for at, heading in enumerate(headings):
            table.add_column(heading, justify="right" if at else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in report.notes:
        console.print(note, highlight=False)
    if folder is not None:
        console.print(f"The results are in {folder}", highlight=False)
