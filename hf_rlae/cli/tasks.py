"""`hf-rlae tasks`."""

from __future__ import annotations

import argparse
import importlib

SUMMARY = "list the tasks: where their questions come from, and what judges the answers"
DESCRIPTION = """\
Lists the tasks of `load_task`, with those of installed plug-ins: source, licence of the data, reward and splits.

  hf-rlae tasks
  hf-rlae tasks | grep gsm8k
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints the table and returns the exit code."""
    importlib.import_module("hf_rlae.cli.listings").show_tasks()
    return 0
