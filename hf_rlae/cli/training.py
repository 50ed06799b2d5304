"""The work of `hf-rlae train`, after its first checks."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_rlae.configs import find_accelerate_config
from hf_rlae.errors import ConfigError
from hf_rlae.trainers.runs import predict_cost, read_settings, read_table, run, run_table, table_text
from hf_rlae.trainers.runs.arguments import LaunchArguments
from hf_rlae.trainers.runs.settings import make_parser
from hf_rlae.trainers.runs.tables import TableRow

_SHOWN = r"eval_reward|eval_(\w+_)?rewards/.*/mean|eval_completions/mean_length"
"""The figures of an evaluation that are printed."""

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
    rows = read_table(arguments) if kind == "rlae" else None
    settings = read_settings(kind, arguments) if rows is None else next(iter(rows[0].cells.values()))
    if LAUNCHED not in os.environ and any(value is not None for value in asdict(settings.launch).values()):
        command = launch_command(settings.launch, kind, arguments)
        sys.stdout.flush()
        # in place of this process, so that signals reach accelerate and its exit code is that of the command
        os.execve(command[0], command, {**os.environ, LAUNCHED: "1"})  # noqa: S606  # nosec B606 (no shell)
    with warnings.catch_warnings():
        # transformers' deprecations of its own arguments, which TRL sets
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        if rows is not None:
            _train_table(rows)
            return
        trainer = run(settings)
    if trainer.is_world_process_zero():
        _show_evaluation(trainer)
        print(f"saved in {trainer.args.output_dir}")
    trainer.end()


def _train_table(rows: Sequence[TableRow]) -> None:
    """Prints what the trainings of a table need, trains, and prints and saves the table."""
    is_first = os.environ.get("RANK", "0") == "0"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for row in rows if is_first else ():
        for column, settings in row.cells.items():
            print(f"{row.name}, {column}, predicted:\n{predict_cost(settings, processes).to_text()}", flush=True)
    reports = {}
    for row, report in run_table(rows):
        reports[row.name] = report
        if is_first:
            path = row.folder.parent / "table.md"
            path.write_text(table_text(reports), encoding="utf-8")
            print(f"{row.name}: {report.to_markdown()}", flush=True)
    if is_first:
        print(f"{table_text(reports)}saved in {path}")


def _show_evaluation(trainer: Any) -> None:
    """Prints the rewards of the last evaluation."""
    last: dict[str, float] = next(
        (entry for entry in reversed(trainer.state.log_history) if "eval_reward" in entry), {}
    )
    figures = [f"{name} {last[name]:.4g}" for name in sorted(last) if re.fullmatch(_SHOWN, name)]
    if figures:
        print(f"evaluation: {', '.join(figures)} (all figures: {trainer.args.output_dir}/eval_results.json)")


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
        file = find_accelerate_config(config)
        _check_devices(config, file, launch)
        command += ["--config_file", str(file)]
    elif options.get("num_processes", 1) > 1 and not torch.accelerator.is_available():
        command += ["--multi_gpu"]  # else accelerate starts one process where there are no GPUs, or needs MPI
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return [*command, "--module", "hf_rlae.cli.main", "train", kind, *arguments]


def _check_devices(config: str, file: Path, launch: LaunchArguments) -> None:
    """Raises `ConfigError` if a configuration starts more processes on this machine than it has GPUs."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        processes = launch.num_processes or values.get("num_processes") or 1
        per_machine = -(-int(processes) // int(launch.num_machines or values.get("num_machines") or 1))
        uses_cpu = bool(values.get("use_cpu"))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return  # accelerate says what is wrong with the file
    found = torch.accelerator.device_count()
    if per_machine > max(1, found) and not uses_cpu and launch.num_processes is None:
        raise ConfigError(
            f"--accelerate_config {config} starts {per_machine} processes on this machine, one per GPU, and it has "
            f"{found}; add --num_processes with the number that you want, or give another file"
        )
