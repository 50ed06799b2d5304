"""The work of `hf-rlae train`, after its first checks."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict

import torch

from hf_rlae.configs import find_accelerate_config
from hf_rlae.trainers.runs import read_settings, run
from hf_rlae.trainers.runs.arguments import LaunchArguments
from hf_rlae.trainers.runs.settings import make_parser

LAUNCHED = "HF_RLAE_LAUNCHED"
"""Set in processes that `accelerate launch` starts for this command."""


def show_settings(kind: str) -> None:
    """Prints all settings of a kind of run."""
    print(make_parser(kind).format_help())


def train(kind: str, arguments: Sequence[str]) -> None:
    """Trains in this process, or hands the run over to `accelerate launch` if processes are asked for.

    Args:
        kind (`str`): `"rlae"` or `"cory"`.
        arguments (`Sequence[str]`): `--config` and overrides.

    Raises:
        HfRlaeError: settings, data or models that cannot be used.
    """
    settings = read_settings(kind, arguments)
    if LAUNCHED not in os.environ and any(value is not None for value in asdict(settings.launch).values()):
        command = launch_command(settings.launch, kind, arguments)
        sys.stdout.flush()
        # in place of this process, so that signals reach accelerate and its exit code is that of the command
        os.execve(command[0], command, {**os.environ, LAUNCHED: "1"})  # noqa: S606  # nosec B606 (no shell)
    with warnings.catch_warnings():
        # transformers' deprecations of its own arguments, which TRL sets
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        trainer = run(settings)
    if trainer.is_world_process_zero():
        print(f"saved in {trainer.args.output_dir}")
    trainer.end()


def launch_command(launch: LaunchArguments, kind: str, arguments: Sequence[str]) -> list[str]:
    """The command that starts the processes of a run.

    Args:
        launch (`LaunchArguments`): the processes that are asked for.
        kind (`str`), arguments (`Sequence[str]`): of `train`, which every process reads again.

    Raises:
        ConfigError: there is no such configuration for accelerate.
    """
    options = {name: value for name, value in asdict(launch).items() if value is not None}
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    config = options.pop("accelerate_config", None)
    if config is not None:
        command += ["--config_file", str(find_accelerate_config(config))]
    elif options.get("num_processes", 1) > 1 and not torch.accelerator.is_available():
        command += ["--multi_gpu"]  # else accelerate starts one process where there are no GPUs, or needs MPI
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return [*command, "--module", "hf_rlae.cli.main", "train", kind, *arguments]
