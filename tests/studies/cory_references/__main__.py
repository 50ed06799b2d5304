"""CORY as its paper measures it: `python -m tests.studies.cory_references --output DIR`.

Families of trainers (`families.py`) fine-tune a base that can use a reference (`base.py`). All agents are evaluated
along training: alone, in their roles, and as a team of several passes (`watch.py`), with two controls: the base reads
the agent's answer, and the agent reads its own. Families are compared by the exact KL at which they first reach a
reward.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.studies.cory_references import tables
from tests.studies.cory_references.base import Pretraining, prepare_base
from tests.studies.cory_references.families import FAMILIES
from tests.studies.cory_references.run import Run
from tests.studies.cory_tables import frontier_picture
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import as_markdown

NUMBERS: dict[str, Any] = {
    "texts": 256,
    "generations": 4,
    "updates": 2,
    "ppo_iterations": 2,
    "rollouts": 96,
    "questions": 256,
    "every": 4,
    "beta": 0.04,
    "kl_coef": 0.02,
    "exchange": 4,
    "warmup": 8,
    "rank": 8,
    "base": asdict(Pretraining()),
}
"""Of all trainings.

A rollout has `texts` texts an agent, `generations` a prompt, and is learned from in `updates` steps, `ppo_iterations`
times by PPO; agents are evaluated after `every` rollouts and exchange roles after `exchange`. `kl_coef` is PPO's, in
units of the reward: about half of `beta`, since GRPO divides rewards by their deviation, which is about one half.
"""

RATES = (1e-3, 2e-3)

QUICK: dict[str, Any] = {
    "texts": 8,
    "rollouts": 2,
    "questions": 8,
    "every": 1,
    "rank": 2,
    "base": asdict(Pretraining(hidden_size=16, num_layers=1, steps=2, batch_size=8)),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.cory_references",
        description="CORY with a base that can use a reference: alone, in role, and as a team.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, metavar="FAMILY", default=list(FAMILIES))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="learning rates")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="small numbers, one seed: to see that it works")
    parser.add_argument("--tables", action="store_true", help="only the tables of the runs that are there")
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: at least 1")
    if not all(0 < rate < 1 for rate in options.rates) or len(set(options.rates)) < len(options.rates):
        parser.error(f"--rates {' '.join(map(str, options.rates))}: give different numbers between 0 and 1")
    return options


def planned(families: Sequence[str], rates: Sequence[float], seeds: int, rollouts: int, base: Path) -> list[Run]:
    """All runs; those of the first seeds come first, so that an interrupted study has all families.

    Args:
        families (`Sequence[str]`), rates (`Sequence[float]`), seeds (`int`): of the runs.
        rollouts (`int`): of each.
        base (`Path`): the folder of the base.
    """
    return [Run(family, rate, seed, rollouts, base) for seed in range(seeds) for rate in rates for family in families]


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and writes tables and pictures."""
    options = parse(arguments)
    settings = {**NUMBERS, **(QUICK if options.quick else {})}
    results, console = ResultFolder(options.output, settings), Console(width=200)
    base = results.folder / "base"
    seeds, rates = (1, options.rates[:1]) if options.quick else (options.seeds, options.rates)
    runs = planned(options.families, rates, seeds, settings["rollouts"], base)
    if not options.tables:
        pretraining = {**settings["base"], "references": tuple(settings["base"]["references"])}
        console.print(prepare_base(base, Pretraining(**pretraining)))
        do_runs(runs, results, options.jobs, console)
    write_results(runs, results, console)


def write_results(runs: Sequence[Run], results: ResultFolder, console: Console) -> None:
    """Writes and prints what runs found; runs that are not there are left out.

    Args:
        runs (`Sequence[Run]`): all that are planned.
        results (`ResultFolder`): where they are.
        console (`rich.console.Console`): where tables are printed.
    """
    entries = [entry for run in runs if (entry := results.read(run.name)) is not None]
    made = {name: tables.kl_table(entries, name) for name in tables.SUFFIXES}
    made |= {"ends": tables.end_table(entries), "compute": tables.compute_table(entries)}
    for name, table in made.items():
        console.print(table.shown(name))
        as_markdown(table, results.folder / f"{name.replace(' ', '_')}.md")
    for name in tables.SUFFIXES:
        shown = tables.with_most_seeds(entries)  # 21 families are no picture
        views = [entry for entry in tables.viewed(shown, name) if entry["method"] in FAMILIES]
        frontier_picture(views, results.folder / f"{name.replace(' ', '_')}.png")
    console.print(f"{len(entries)} of {len(runs)} runs, {sum(e['cpu_seconds'] for e in entries) / 60:.0f} CPU minutes")


if __name__ == "__main__":
    main()
