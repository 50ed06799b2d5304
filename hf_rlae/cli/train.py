"""`hf-rlae train`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from hf_rlae.cli.arguments import check_packages
from hf_rlae.configs import find_config, list_configs
from hf_rlae.errors import ConfigError
from hf_rlae.extras import TRAINING

SUMMARY = "train a policy (rlae) or the agents of a model (cory) from a configuration file"
DESCRIPTION = """\
Trains the policy of an ensemble (rlae) or two LoRA agents of one model (cory). All settings come from a YAML file, a
ready one (--list) or your own; --key value overrides a setting. With --num_processes or --accelerate_config the run is
started by `accelerate launch`.

  hf-rlae train rlae --config rlae_gsm8k
  hf-rlae train rlae --config my_run.yaml --members FOLDER HUB_ID --max_steps 100 --num_processes 2
  hf-rlae train cory --config cory_gsm8k --accelerate_config two_gpus
"""


class _Settings(argparse.Action):
    """Keeps the rest of the command line, except for options of this command that come after the kind of run.

    `--debug` with a value is a setting of transformers' trainers.
    """

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        rest = list(values or [])
        for option in ("--debug", "--list", "--settings"):
            if option in rest and not _has_value(rest, option):
                rest.remove(option)
                setattr(namespace, option[2:], True)
        if {"-h", "--help"} & set(rest):
            parser.print_help()
            parser.exit()
        namespace.overrides = rest


def _has_value(rest: Sequence[str], option: str) -> bool:
    following = rest[rest.index(option) + 1 :][:1]
    return bool(following) and not following[0].startswith("--")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("kind", nargs="?", choices=("rlae", "cory"), help="what is trained")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        action=_Settings,
        metavar="--config FILE --key value",
        help="the file, or the name of a ready one, and settings that differ from it",
    )
    parser.add_argument("--list", action="store_true", help="list the ready files")
    parser.add_argument("--settings", action="store_true", help="list all settings of rlae or cory")


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for arguments that cannot be used."""
    if args.kind is None:
        raise ConfigError("give what is trained, rlae or cory, such as: hf-rlae train rlae --config rlae_gsm8k")
    named = _config_of(args.overrides)
    if named is not None:
        find_config(named)
    check_packages("hf-rlae train", TRAINING, "train")


def _config_of(overrides: Sequence[str]) -> str | None:
    for at, part in enumerate(overrides):
        if part.startswith("--config="):
            return part.partition("=")[2]
        if part == "--config":
            if at + 1 == len(overrides):
                raise ConfigError("--config needs a value: a YAML file, or the name of a ready one (--list)")
            return overrides[at + 1]
    return None


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, trains and returns the exit code."""
    if args.list:
        configs = list_configs()
        width = max(map(len, configs))
        print("\n".join(f"{name:{width}}  {summary}" for name, summary in configs.items()))
        return 0
    check(args)
    training = importlib.import_module("hf_rlae.cli.training")  # imports of trl take seconds
    if args.settings:
        training.show_settings(args.kind)
    else:
        training.train(args.kind, args.overrides)
    return 0
