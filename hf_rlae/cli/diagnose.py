"""`hf-rlae diagnose`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import os

from hf_rlae.cli.arguments import (
    add_loading,
    add_members,
    check_packages,
    check_shared,
    hub_sources,
    positive_int,
    seed,
    stay_offline_without_network,
)
from hf_rlae.errors import ConfigError

SUMMARY = "say whether to use one model, an ensemble, or to train a policy"
DESCRIPTION = """\
Says whether to use one of the members, an ensemble with fixed weights, or to train a policy, with the numbers behind
it: bits per byte of the task's solutions, and scores of written answers.

  hf-rlae diagnose MEMBER MEMBER --task gsm8k --limit 100
  hf-rlae diagnose MEMBER MEMBER --text-file texts.txt
"""

_UNUSED = dict.fromkeys(
    ("weights", "policy", "mixing", "mixing_kwargs", "grain", "warp", "weight_unit", "temperature", "top_p", "top_k")
) | {"sample": False}
"""Of what other commands say about an ensemble and its decoding: members are compared before they are weighed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_members(parser)
    tasks = parser.add_argument_group("questions or texts")
    given = tasks.add_mutually_exclusive_group(required=True)
    given.add_argument("--task", metavar="NAME", help="see hf-rlae tasks")
    given.add_argument("--text-file", metavar="FILE", help="a text per line; with .jsonl, the column text of each line")
    tasks.add_argument("--split", default="test", metavar="NAME", help="of the task (default: test)")
    tasks.add_argument(
        "--source", metavar="SOURCE", help="a file, a folder or a Hub id with the questions, or built_in"
    )
    tasks.add_argument("--limit", type=positive_int, default=200, metavar="N", help="the most rows (default: 200)")
    tasks.add_argument("--no-answers", action="store_true", help="only read solutions; write no answers")
    longest = "of an answer (default: 256)"
    tasks.add_argument("--max-new-tokens", type=positive_int, default=256, metavar="N", help=longest)
    ensemble = parser.add_argument_group("ensemble")
    length = "tokens that would share one weight vector (default: 8, or that of a saved ensemble)"
    ensemble.add_argument("--span-length", type=positive_int, metavar="N", help=length)
    add_loading(parser)
    parser.set_defaults(**_UNUSED)
    running = parser.add_argument_group("running")
    size = "questions that are answered together (default: 8)"
    running.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help=size)
    running.add_argument("--seed", type=seed, default=0, metavar="N", help="of the halves (default: 0)")
    running.add_argument("--output", metavar="DIR", help="a folder for diagnosis.md and diagnosis.json")


def check(args: argparse.Namespace) -> None:
    """Raises for arguments that do not fit together and for missing files.

    Raises:
        ConfigError: see `check_shared`; one member, a text file that does not exist, or an output that is a file.
        MemberError: a path that is not a folder.
    """
    if args.output is not None and os.path.exists(args.output) and not os.path.isdir(args.output):
        raise ConfigError(f"--output: {args.output!r} is not a folder; give one, which is created if it does not exist")
    if args.text_file is not None:
        if not os.path.isfile(args.text_file):
            raise ConfigError(f"--text-file: there is no file {args.text_file!r}")
        if args.source is not None:
            raise ConfigError("--source is of a task; leave it out with --text-file")
    else:
        check_packages("hf-rlae diagnose --task", ("datasets",), "train")
    check_shared(args)


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, diagnoses, prints the advice and the tables, and returns the exit code."""
    check(args)
    stay_offline_without_network(hub_sources(args))
    # torch and transformers take seconds to import
    importlib.import_module("hf_rlae.cli.diagnosis").show(args)
    return 0
