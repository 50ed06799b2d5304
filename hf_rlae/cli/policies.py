"""`hf-rlae policies`."""

from __future__ import annotations

import argparse
import importlib

SUMMARY = "list the registered names: policies, mixings, rewards and others"
DESCRIPTION = """\
Lists every name that options, configurations and functions accept, with those of installed plug-ins.

  hf-rlae policies
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints the names and returns the exit code."""
    importlib.import_module("hf_rlae.cli.listings").show_names()
    return 0
