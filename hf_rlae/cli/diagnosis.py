"""The work of `hf-rlae diagnose`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_rlae.cli.evaluation import print_report
from hf_rlae.cli.loading import build_ensemble
from hf_rlae.errors import ConfigError
from hf_rlae.evaluation import diagnose
from hf_rlae.tasks import get_task


def show(args: argparse.Namespace) -> None:
    """Diagnoses, and prints the advice, the facts and the tables.

    Args:
        args (`argparse.Namespace`): the checked arguments of `hf-rlae diagnose`.

    Raises:
        HfRlaeError: members, a task or texts that cannot be used.
    """
    if args.task is not None:
        get_task(args.task)  # raises before members are loaded
    given: Any = args.task if args.text_file is None else _texts(Path(args.text_file))
    found = diagnose(
        build_ensemble(args),
        given,
        split=args.split,
        source=args.source,
        answers=not args.no_answers,
        limit=args.limit,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    console = Console(file=sys.stdout, highlight=False)
    console.print(found.advice, style="bold")
    for name, value in found.facts.items():
        console.print(f"{name.replace('_', ' ')}: {value:.2f}")
    for report in (found.texts, found.answers):
        if report is not None:
            print_report(report)
    if args.output is not None:
        found.save(args.output)
        console.print(f"The results are in {args.output}")


def _texts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are not empty."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) if path.suffix == ".jsonl" else {"text": line} for line in lines]
    except ValueError as error:
        raise ConfigError(f"--text-file: {path} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(
            f"--text-file: {path} has lines that are no JSON objects; give one with a column text per line"
        )
    return rows
