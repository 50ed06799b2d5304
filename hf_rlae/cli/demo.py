"""`hf-rlae demo`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import os
import re

from hf_rlae.checks import Bounds
from hf_rlae.cli.arguments import check_output, check_packages, number, seed
from hf_rlae.errors import ConfigError
from hf_rlae.extras import TRAINING

SUMMARY = "three embedded specialists solve what none of them can alone"
DESCRIPTION = """\
Loads three tiny language models that come with the package. Each is right on one operator (+, -, *) and
confidently wrong on the others. Shows one text that they generate together, with the weights of a learned policy and
with every token in the colour of its carrier. Then shows the accuracy of each model and of several weightings on
held-out questions, and draws the weights. With --train the policy is trained first.

Needs no network and no GPU.

  hf-rlae demo
  hf-rlae demo --chain 9-4+2*6 --questions 50 --picture weights.svg
  hf-rlae demo --web
"""
CHAIN = re.compile(r"\d{1,2}(?:[-+*]\d{1,2})+=?", re.ASCII)
_LARGEST_OF_LONG = 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("--chain", default="7+5*3", metavar="CHAIN", help="the question (default: 7+5*3)")
    parser.add_argument(
        "--tokenizers",
        choices=("different", "shared"),
        default="different",
        help="three members with three tokenizers, or with a shared one (default: different)",
    )
    parser.add_argument("--web", action="store_true", help="serve a page on this machine instead, for the browser")
    port = number(int, Bounds(0, 65535, is_whole=True))
    parser.add_argument("--port", type=port, default=7860, metavar="N", help="of --web; 0: a free one (default: 7860)")
    parser.add_argument("--train", action="store_true", help="train the policy first; takes a few minutes")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of --train (default: 0)")
    count = number(int, Bounds(1, 2000, is_whole=True))
    parser.add_argument("--questions", type=count, default=100, metavar="N", help="held-out questions (default: 100)")
    parser.add_argument(
        "--picture",
        default="hf-rlae-demo.png",
        metavar="FILE",
        help="file for the picture of the weights, .png, .svg or .pdf (default: hf-rlae-demo.png)",
    )


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for arguments that cannot be used."""
    _check_chain(args.chain)
    if os.path.splitext(args.picture)[1].lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--picture {args.picture}: the name must end with .png, .svg or .pdf")
    check_output(args.picture, "--picture")
    if args.web:
        check_packages("--web", ("gradio",), "demo")
    if args.train:
        check_packages("--train", TRAINING, "train")


def _check_chain(chain: str) -> None:
    """Raises `ConfigError` for what the members were never trained on."""
    if not CHAIN.fullmatch(chain):
        raise ConfigError(
            f"--chain {chain!r} is not a chain of numbers with +, - and * between them; give one like 7+5*3"
        )
    chains = importlib.import_module("hf_rlae.tasks.chains")  # imports every task
    question = chains.parse_question(chain)
    if len(question.operators) > 1 and not all(1 <= number <= _LARGEST_OF_LONG for number in question.operands):
        raise ConfigError(
            f"--chain {chain}: the members were trained on numbers from 1 to {_LARGEST_OF_LONG} in chains of several "
            "operators, and to 99 with a single one; give such numbers, like 7+5*3 or 12+30"
        )
    if not question.is_valid:
        raise ConfigError(
            f"--chain {chain}: a result on the way is not between 0 and {chains.LARGEST}, and the members were "
            "trained on no others; give a chain like 7+5*3"
        )


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, shows the demo and returns the exit code."""
    check(args)
    if args.web:
        importlib.import_module("hf_rlae.cli.web_demo").serve(args.port)
        return 0
    importlib.import_module("hf_rlae.cli.demonstration").show(args)
    return 0
