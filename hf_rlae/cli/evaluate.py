"""`hf-rlae evaluate`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import os

from hf_rlae.cli.arguments import (
    add_decoding,
    add_ensemble,
    add_loading,
    add_members,
    check_packages,
    check_shared,
    hub_sources,
    positive_int,
    stay_offline_without_network,
)
from hf_rlae.errors import ConfigError

SUMMARY = "compare models, ensembles and other methods on tasks"
DESCRIPTION = """\
Compares the members by themselves and the ensemble on the questions of tasks: accuracy or bits per byte with intervals,
the difference to the best member, tokens, time and memory. With --output, a run that was stopped continues, and the
table is also written as Markdown, JSON, CSV and a picture.

  hf-rlae evaluate MEMBER MEMBER --task gsm8k --limit 100 --output results
  hf-rlae evaluate MEMBER MEMBER --task arc_challenge --scoring choices --method uniform --method entropy
  hf-rlae evaluate ENSEMBLE --task svamp --source svamp.jsonl --prompt-format standard --validation train
"""

SCORINGS = ("generate", "choices", "bits_per_byte")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_members(parser)
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument(
        "--task",
        dest="tasks",
        action="append",
        required=True,
        metavar="NAME",
        help="see hf-rlae tasks; repeat for several",
    )
    scoring = (
        "generate: the task's reward judges completions; choices: the most likely option; bits_per_byte: likelihood "
        "of texts (default: generate)"
    )
    tasks.add_argument("--scoring", choices=SCORINGS, default="generate", help=scoring)
    tasks.add_argument("--split", default="test", metavar="NAME", help="of the tasks (default: test)")
    validation = "the split on which the best member is chosen (default: the questions themselves)"
    tasks.add_argument("--validation", metavar="NAME", help=validation)
    source = "a file, a folder or a Hub id with the questions, or built_in; TASK=SOURCE for one of several tasks"
    tasks.add_argument("--source", dest="sources", action="append", metavar="SOURCE", help=source)
    tasks.add_argument("--limit", type=positive_int, metavar="N", help="the maximum number of questions per task")
    tasks.add_argument("--few-shot", type=positive_int, metavar="N", help="worked examples before each question")
    formats = "conversational (chat templates) or standard (text) (default: the task's own)"
    tasks.add_argument("--prompt-format", choices=("conversational", "standard"), help=formats)
    forms = "with --scoring choices: text scores the options' texts, letter their letters (default: text)"
    tasks.add_argument("--option-form", choices=("text", "letter"), default="text", help=forms)
    methods = parser.add_argument_group("methods")
    method = (
        "a policy or a baseline by name, or a policy's folder or Hub id; repeat for several (default: the ensemble)"
    )
    methods.add_argument("--method", dest="methods", action="append", metavar="NAME", help=method)
    methods.add_argument("--no-members", action="store_true", help="leave out the members by themselves")
    add_ensemble(parser)
    add_decoding(parser, max_new_tokens=256)
    add_loading(parser)
    running = parser.add_argument_group("running")
    size = "questions that are answered together (default: 8)"
    running.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help=size)
    running.add_argument("--output", metavar="DIR", help="a folder for every question's result and the tables")


def check(args: argparse.Namespace) -> None:
    """Raises for arguments that do not fit together and for missing folders.

    Raises:
        ConfigError: see `check_shared`; sources of tasks that are not evaluated, or an output that is a file.
        MemberError: a path that is not a folder.
    """
    args.sources = _sources(args.tasks, args.sources or [])
    if args.output is not None and (
        not args.output or (os.path.exists(args.output) and not os.path.isdir(args.output))
    ):
        raise ConfigError(f"--output: {args.output!r} is not a folder; give one, which is created if it does not exist")
    check_packages("hf-rlae evaluate", ("datasets",), "train")
    check_shared(args)


def _sources(tasks: list[str], given: list[str]) -> dict[str, str] | str | None:
    """One source, or sources by task."""
    pairs = [entry.partition("=") for entry in given]
    if len(given) == 1 and pairs[0][0] not in tasks:
        if len(tasks) > 1:
            raise ConfigError(f"--source: {given[0]} is for one of {len(tasks)} tasks; give TASK=SOURCE for each")
        return given[0]
    unknown = next((entry for entry, (task, _, _) in zip(given, pairs, strict=True) if task not in tasks), None)
    if unknown is not None:
        raise ConfigError(f"--source: {unknown} does not begin with one of {', '.join(tasks)} and =; give TASK=SOURCE")
    return {task: source for task, _, source in pairs} or None


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, evaluates, prints the table and returns the exit code."""
    check(args)
    stay_offline_without_network(hub_sources(args))
    # torch and transformers take seconds to import
    importlib.import_module("hf_rlae.cli.evaluation").show(args)
    return 0
