"""Several runs of a study at a time, one thread each; what is done is not done again."""

from __future__ import annotations

import gc
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from hf_rlae.errors import ConfigError
from tests.studies.results import ResultFolder


class Measurable(Protocol):
    """A run that can be sent to another process."""

    @property
    def name(self) -> str: ...

    def training(self, settings: dict[str, Any]) -> Any: ...

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]: ...


def do_runs(runs: Sequence[Measurable], results: ResultFolder, jobs: int, console: Console) -> None:
    """Does what has not been done yet, with a progress bar; each result is written when it is there.

    Runs return `accuracy` or `reward`, which is shown, and what else they found; `seconds` and `cpu_seconds` are added,
    and `training`, how the run was trained (a dataclass), if it says so.

    Args:
        runs (`Sequence[Measurable]`): with names of their own.
        results (`ResultFolder`): of the study; its settings are handed to the runs.
        jobs (`int`): runs at a time.
        console (`rich.console.Console`): where progress is shown.

    Raises:
        ConfigError: a run that is there was trained in another way, or does not say how; nothing has been done.
    """
    known = {run.name: results.read(run.name) for run in runs}
    differs = [
        run.name
        for run in runs
        if (found := known[run.name]) is not None and found.get("training") != _training(run, results.settings)
    ]
    if differs:
        raise ConfigError(
            f"{results.folder} holds {len(differs)} runs that were trained with other settings than today's, or do "
            f"not say with which, the first of them {differs[0]}: give another folder, or delete their files in runs/"
        )
    left = [run for run in runs if known[run.name] is None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - len(left))

        def keep(name: str, found: dict[str, Any]) -> None:
            results.write(name, found)
            shown = found["accuracy"] if "accuracy" in found else found["reward"]
            progress.update(task, advance=1, description=f"{name} {shown:.2f}")

        work: Callable[[Measurable], tuple[str, dict[str, Any]]] = partial(_work, settings=results.settings)
        if jobs == 1:
            for run in left:
                keep(*work(run))
        elif left:
            with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=8) as pool:
                for name, found in pool.imap_unordered(work, left):
                    keep(name, found)


def _work(run: Measurable, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    torch.set_num_threads(1)
    disable_progress_bar()
    gc.freeze()  # what was imported need not be searched for garbage again
    started, cpu_started = time.perf_counter(), time.process_time()
    found = run.measure(settings)
    spent = {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
    }
    training = _training(run, settings)
    return run.name, {**found, **spent, **({} if training is None else {"training": training})}


def _training(run: Measurable, settings: dict[str, Any]) -> dict[str, Any] | None:
    """How a run is trained, as it is read from a file; `None` where it does not say."""
    training = run.training(settings)
    return None if training is None else json.loads(json.dumps(asdict(training)))
