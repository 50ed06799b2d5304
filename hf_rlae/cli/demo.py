"""`hf-rlae demo`: its arguments, checked before anything slow is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import re

from hf_rlae.cli.generate import check_output
from hf_rlae.errors import ConfigError

SUMMARY = "three embedded specialists solve what none of them can alone"
DESCRIPTION = """\
Loads three tiny language models that come with the package. Each is right on one operator (+, -, *) and
confidently wrong on the others. Shows one text that they write together, weighed by a learned policy and coloured
by who carried each token, then how many held-out questions each of them and several ways to weigh them get right,
and draws the weights. With --train the policy is trained first, before your eyes.

Needs no network and no GPU.
"""
CHAIN = re.compile(r"\d{1,2}(?:[-+*]\d{1,2})+=?", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("--chain", default="7+5*3", metavar="CHAIN", help="what to solve (default: 7+5*3)")
    parser.add_argument(
        "--tokenizers",
        choices=("different", "shared"),
        default="different",
        help="three members with three tokenizers, or with one (default: different)",
    )
    parser.add_argument("--train", action="store_true", help="train the policy anew; takes a few minutes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of --train (default: 0)")
    parser.add_argument("--questions", type=int, default=100, metavar="N", help="held-out questions (default: 100)")
    parser.add_argument(
        "--picture",
        default="hf-rlae-demo.png",
        metavar="FILE",
        help="where the weights are drawn, .png, .svg or .pdf (default: hf-rlae-demo.png)",
    )


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for arguments that cannot be used."""
    if not CHAIN.fullmatch(args.chain):
        raise ConfigError(
            f"--chain {args.chain!r} is not a chain of numbers from 0 to 99 with +, - and * between them; write it "
            "like 7+5*3"
        )
    if args.seed is not None and not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed {args.seed}: give a whole number from 0 to 2**32 - 1")
    if not 1 <= args.questions <= 2000:
        raise ConfigError(f"--questions {args.questions}: give a number from 1 to 2000")
    if os.path.splitext(args.picture)[1].lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--picture {args.picture}: the name must end with .png, .svg or .pdf")
    check_output(args.picture, "--picture")


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, shows the demo and returns the exit code."""
    check(args)
    importlib.import_module("hf_rlae.cli.demonstration").show(args)
    return 0
