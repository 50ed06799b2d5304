"""`hf-rlae version`."""

from __future__ import annotations

import argparse
import importlib

SUMMARY = "report versions and devices, for bug reports"
DESCRIPTION = """\
Reports the versions of hf_rlae and of the packages that it works with, Python, the platform and the devices. Nothing in
it is private: no paths, names or environment variables.

  hf-rlae version
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints the report and returns the exit code."""
    importlib.import_module("hf_rlae.cli.environment").show_environment()
    return 0
