"""Whether CORY learns at a lower KL than GRPO: `python -m tests.studies.cory`.

GRPO, with as many samples, twice as many, and as much measured compute as CORY; CORY, without knowledge transfer,
without exchange of roles, and with PPO. All have the same adapters, learning rates and prompts. Every agent is
evaluated alone as pioneer along training: its reward, and its exact KL to the base. Methods are compared by the KL at
which they first reach a reward.

Two tasks: how glad the continuation of a story sounds, with a real model and stories from the command line, and exact
arithmetic with an embedded member (GRPO and CORY only).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from tests.studies import cory_tables as tables
from tests.studies.cory_runs import (
    ARITHMETIC,
    CORY,
    GRPO,
    GRPO_COMPUTE,
    METHODS,
    SENTIMENT,
    TASKS,
    Run,
    Sources,
    train,
)
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import StudyTable, as_markdown

EQUAL_COMPUTE = "equal_compute"
"""The file that says how many rollouts of GRPO cost as much as a training of CORY."""

NUMBERS: dict[str, Any] = {
    "generations": 8,
    "texts": {SENTIMENT: 64, ARITHMETIC: 128},
    "updates": 2,
    "ppo_iterations": 4,
    "tokens": 32,
    "prompts": 64,
    "questions": 128,
    "every": 2,
    "beta": 0.04,
    "kl_coef": 0.005,
    "exchange": 5,
    "rank": 8,
}
"""Of all trainings.

A rollout has `texts` texts, `generations` a prompt, and is learned from in `updates` steps, `ppo_iterations` times by
CORY-PPO; agents are evaluated after `every` rollouts and exchange roles after `exchange`. `kl_coef` is CORY-PPO's, in
units of the reward: about `beta` times the reward's deviation, by which GRPO divides rewards.
"""

ROLLOUTS = {SENTIMENT: 18, ARITHMETIC: 16}
RATES = (1e-3, 3e-3, 1e-2)

QUICK: dict[str, Any] = {
    "generations": 4,
    "texts": {SENTIMENT: 8, ARITHMETIC: 8},
    "tokens": 8,
    "prompts": 4,
    "questions": 4,
    "every": 1,
    "rank": 2,
}
QUICK_ROLLOUTS = {SENTIMENT: 2, ARITHMETIC: 2}

OTHER_SEEDS = 100
"""Added to the seeds of GRPO at equal compute, whose runs would else begin as those of GRPO, step by step."""

_PILOT_ROLLOUTS = 2
_RUNS_A_PROCESS = 8


@dataclass(frozen=True)
class Plan:
    """Which runs there are.

    Attributes:
        tasks (`Sequence[str]`), rates (`Sequence[float]`): of all methods.
        seeds (`int`), further_seeds (`int`): of GRPO and CORY, and of the other methods.
        rollouts (`dict[str, int]`): by task.
        sources (`Sources`): of the sentiment task.
    """

    tasks: Sequence[str]
    rates: Sequence[float]
    seeds: int
    further_seeds: int
    rollouts: dict[str, int]
    sources: Sources

    def first(self) -> list[Run]:
        """GRPO and CORY, whose cost says how long GRPO trains at equal compute."""
        return [run for task in self.tasks for run in self._of(task, (GRPO, CORY), self.seeds, self.rollouts[task])]

    def further(self, equal_rollouts: int) -> list[Run]:
        """The other methods, on stories alone.

        Args:
            equal_rollouts (`int`): of GRPO at equal compute.
        """
        if SENTIMENT not in self.tasks:
            return []
        others = [method for method in METHODS if method not in (GRPO, CORY)]
        runs = self._of(SENTIMENT, others, self.further_seeds, self.rollouts[SENTIMENT])
        return [
            replace(run, rollouts=equal_rollouts, seed=run.seed + OTHER_SEEDS) if run.method == GRPO_COMPUTE else run
            for run in runs
        ]

    def _of(self, task: str, methods: Sequence[str], seeds: int, rollouts: int) -> list[Run]:
        return [
            Run(task, method, rate, seed, rollouts, self.sources)
            for seed in range(seeds)
            for rate in self.rates
            for method in methods
        ]


def equal_rollouts(results: ResultFolder, runs: Sequence[Run]) -> int:
    """Rollouts of GRPO that cost the CPU time of a training of CORY, without evaluations; measured once, then kept.

    Args:
        results (`ResultFolder`): with the runs done.
        runs (`Sequence[Run]`): of GRPO and CORY.
    """
    known = results.read(EQUAL_COMPUTE)
    if known is None:
        rollouts, every = runs[0].rollouts, results.settings["every"]
        spent = {method: _median_seconds(results, runs, method) for method in (GRPO, CORY)}
        ratio = spent[CORY] / spent[GRPO]
        known = {"ratio": round(ratio, 3), "rollouts": max(1, round(rollouts * ratio / every)) * every, **spent}
        results.write(EQUAL_COMPUTE, known)
    return int(known["rollouts"])


def _median_seconds(results: ResultFolder, runs: Sequence[Run], method: str) -> float:
    found = [results.read(run.name) for run in runs if run.method == method]
    return float(np.median([entry["training_seconds"] for entry in found if entry is not None]))


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one method on one task.

    Attributes:
        once (`float`): loading.
        rollout (`float`): of each, with what is learned from it.
        evaluation (`float`): of each.
    """

    once: float
    rollout: float
    evaluation: float

    def of(self, rollouts: int, every: int) -> float:
        """A whole run."""
        return self.once + self.rollout * rollouts + self.evaluation * (1 + rollouts // every)


def pilot(task: str, method: str, sources: Sources, settings: dict[str, Any]) -> Cost:
    """Measures a method in a few rollouts, of which the first warms up.

    Args:
        task (`str`), method (`str`): what to measure.
        sources (`Sources`): of the sentiment task.
        settings (`dict`): of the study.
    """
    given, began = {**settings, "every": 1}, time.process_time()
    short = train(Run(task, method, RATES[0], 0, 1, sources), given)
    once = time.process_time() - began - short.training_seconds - short.evaluation_seconds
    long = train(Run(task, method, RATES[0], 0, 1 + _PILOT_ROLLOUTS, sources), given)
    rollout = (long.training_seconds - short.training_seconds) / _PILOT_ROLLOUTS
    return Cost(once, max(rollout, 0.0), long.evaluation_seconds / (2 + _PILOT_ROLLOUTS))


def print_plan(plan: Plan, settings: dict[str, Any], jobs: int, console: Console, importing: float) -> None:
    """Runs every method for a few rollouts and prints what all runs will take.

    Args:
        plan (`Plan`), settings (`dict`), jobs (`int`): of the study.
        console (`rich.console.Console`): where it is printed.
        importing (`float`): CPU seconds that a process takes before its first run.
    """
    costs: dict[tuple[str, str], Cost] = {}
    for task in plan.tasks:
        for method in (GRPO, CORY) if task == ARITHMETIC else METHODS:
            same = (task, GRPO) if method == GRPO_COMPUTE else (task, method)
            costs[task, method] = costs[same] if same in costs else pilot(task, method, plan.sources, settings)
    runs = plan.first()
    if SENTIMENT in plan.tasks:
        ratio = costs[SENTIMENT, CORY].rollout / costs[SENTIMENT, GRPO].rollout
        runs += plan.further(round(plan.rollouts[SENTIMENT] * ratio))
    rows, total = [], 0.0
    for task, method in costs:
        of_kind = [run for run in runs if (run.task, run.method) == (task, method)]
        cost = costs[task, method]
        each = cost.of(of_kind[0].rollouts, settings["every"])
        total += each * len(of_kind)
        numbers = (cost.once, cost.rollout, cost.evaluation, each, each * len(of_kind) / 60)
        shown = [f"{number:.2f}" for number in numbers]
        rows.append((f"{task}: {method}", str(len(of_kind)), str(of_kind[0].rollouts), *shown))
    headings = ("CPU seconds", "runs", "rollouts", "loading", "a rollout", "an evaluation", "a run", "all, minutes")
    console.print(StudyTable(headings, tuple(rows)).shown("The plan"))
    total += importing * (len(runs) / _RUNS_A_PROCESS if jobs > 1 else 1)
    console.print(
        f"{len(runs)} runs, {total / 60:.0f} minutes of one core in all; with {jobs} idle cores {total / 60 / jobs:.0f}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.cory",
        description="Whether CORY learns at a lower KL than GRPO.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="folder of the results; continued if it is there")
    parser.add_argument("--model", type=Path, help="folder of the model that writes stories")
    parser.add_argument("--data", type=Path, help="text file; each line is a story")
    parser.add_argument("--lexicon", type=Path, help="lexicon of the reward; the package's own if not given")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="of GRPO and CORY")
    parser.add_argument("--further-seeds", type=int, default=3, help="of the other methods")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="learning rates")
    parser.add_argument("--rollouts", type=int, help="of a training, if not the study's own numbers")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="small numbers, one seed: to see that it works")
    parser.add_argument(
        "--plan", action="store_true", help="measure a few rollouts, print what all runs take, and stop"
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "further_seeds", "rollouts", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: at least 1")
    if not all(0 < rate < 1 for rate in options.rates) or len(set(options.rates)) < len(options.rates):
        parser.error(f"--rates {' '.join(map(str, options.rates))}: give different numbers between 0 and 1")
    if SENTIMENT in options.tasks and (options.model is None or options.data is None):
        parser.error("the sentiment task needs --model and --data; give them, or --tasks arithmetic")
    if options.output is None and not options.plan:
        parser.error("--output is missing: give a folder for the results, or --plan")
    for path in filter(None, (options.model, options.data, options.lexicon)):
        if not path.exists():
            parser.error(f"{path} is not there; give a folder for --model, and files for --data and --lexicon")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and writes tables, pictures and samples."""
    importing = time.process_time()
    options = parse(arguments)
    rollouts = dict(QUICK_ROLLOUTS if options.quick else ROLLOUTS)
    rollouts = dict.fromkeys(rollouts, options.rollouts) if options.rollouts else rollouts
    settings = {**NUMBERS, **(QUICK if options.quick else {}), "rollouts": rollouts}
    settings["model"] = None if options.model is None else options.model.resolve().name
    settings["data"] = None if options.data is None else options.data.name
    settings["lexicon"] = "package" if options.lexicon is None else options.lexicon.name
    plan = Plan(
        options.tasks,
        options.rates[:1] if options.quick else options.rates,
        1 if options.quick else options.seeds,
        1 if options.quick else options.further_seeds,
        rollouts,
        Sources(options.model, options.data, options.lexicon),
    )
    console = Console(width=160)
    if options.plan:
        torch.set_num_threads(1)
        disable_progress_bar()
        print_plan(plan, settings, options.jobs, console, importing)
        return
    results = ResultFolder(options.output, settings)
    runs = plan.first()
    do_runs(runs, results, options.jobs, console)
    if SENTIMENT in options.tasks:
        of_stories = [run for run in runs if run.task == SENTIMENT]
        further = plan.further(equal_rollouts(results, of_stories))
        do_runs(further, results, options.jobs, console)
        runs += further
    write_results(runs, results, console)


def write_results(runs: Sequence[Run], results: ResultFolder, console: Console) -> None:
    """Writes and prints what runs found, task by task.

    Args:
        runs (`Sequence[Run]`): all of them done.
        results (`ResultFolder`): where they are.
        console (`rich.console.Console`): where tables are printed.
    """
    found = [(run, entry) for run in runs if (entry := results.read(run.name)) is not None]
    for task in dict.fromkeys(run.task for run, _ in found):
        entries = sorted(
            (entry for run, entry in found if run.task == task), key=lambda entry: METHODS.index(entry["method"])
        )
        made = {
            "frontier": tables.frontier_table(entries, GRPO),
            "ratios": tables.ratio_table(entries, GRPO),
            "rates": tables.sensitivity_table(entries),
            "agents": tables.agents_table(entries),
            "compute": tables.compute_table(entries, GRPO),
        }
        for name, table in made.items():
            console.print(table.shown(f"{task}: {name}"))
            as_markdown(table, results.folder / f"{task}-{name}.md")
        tables.frontier_picture(entries, results.folder / f"{task}-frontier.png")
        tables.write_samples(entries, GRPO, results.folder / f"{task}-samples.md")
    spent = sum(entry["cpu_seconds"] for _, entry in found)
    console.print(f"{len(found)} runs, {spent / 60:.0f} minutes of one core in all")


if __name__ == "__main__":
    main()
