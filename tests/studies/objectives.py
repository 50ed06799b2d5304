"""Several objectives at once, and rewards from comparisons: `python -m tests.studies.objectives --output FOLDER`.

Two rewards in conflict: the right answer, and a small one. `RLAETrainer` (embedded members with one tokenizer, single
steps of all operators) and `CoryTrainer` (two agents on the embedded member for subtraction) learn weighted sums,
sums of normalised rewards, and one reward under a constraint on the other: the frontier between the two. Besides, a
policy learns from pairs of completions, judged by a function and by a classifier that was trained on other questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.studies.objectives_runs import CORY, FAMILIES, JUDGES, RLAE, FrontierRun, PairRun, combinations
from tests.studies.objectives_tables import frontier_picture, frontier_table, pairs_table
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import as_markdown

NUMBERS: dict[str, Any] = {
    "rollouts": 12,
    "texts": {RLAE: 256, CORY: 64},
    "updates": {RLAE: 4, CORY: 2},
    "iterations": {RLAE: 2, CORY: 1},
    "rates": {RLAE: 1e-2, CORY: 5e-3},
    "generations": 8,
    "multiplier_rate": 20.0,
    "beta": 0.04,
    "rank": 8,
    "questions": 300,
    "judge_questions": 1500,
    "judge_epochs": 10,
}
"""Of all trainings: a rollout has `texts` texts (of each agent), `generations` a question, and is learned from in
`updates` steps, `iterations` times. `multiplier_rate` is `multiplier_learning_rate`: trainings are short."""

QUICK: dict[str, Any] = {
    "rollouts": 2,
    "texts": {RLAE: 16, CORY: 8},
    "generations": 4,
    "rank": 2,
    "questions": 8,
    "judge_questions": 12,
    "judge_epochs": 1,
}


def plan(seeds: int) -> list[FrontierRun | PairRun]:
    """All runs of the study."""
    runs: list[FrontierRun | PairRun] = []
    for seed in range(seeds):
        runs += [FrontierRun(family, each, seed) for family in FAMILIES for each in combinations(family)]
        runs += [PairRun(judge, seed) for judge in JUDGES]
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and writes tables and a picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.objectives", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="small numbers: to see that it works")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    results = ResultFolder(options.output, {**NUMBERS, **(QUICK if options.quick else {})})
    console, runs = Console(width=140), plan(options.seeds)
    do_runs(runs, results, options.jobs, console)
    write_results(runs, results, console)


def write_results(runs: Sequence[FrontierRun | PairRun], results: ResultFolder, console: Console) -> None:
    """Writes and prints what runs found."""
    found = [entry for run in runs if (entry := results.read(run.name)) is not None]
    frontier = [entry for entry in found if "combination" in entry]
    for family in FAMILIES:
        table = frontier_table([entry for entry in frontier if entry["family"] == family])
        console.print(table.shown(family))
        as_markdown(table, results.folder / f"{family.lower()}.md")
    table = pairs_table([entry for entry in found if "judge" in entry])
    console.print(table.shown("pairs"))
    as_markdown(table, results.folder / "pairs.md")
    frontier_picture(frontier, results.folder / "frontier.png")
    console.print(f"{len(found)} runs, {sum(entry['cpu_seconds'] for entry in found) / 60:.0f} minutes of one core")


if __name__ == "__main__":
    main()
