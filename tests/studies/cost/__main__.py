"""Right answers against what members cost: `python -m tests.studies.cost`.

Policies that read the text choose the members that run. A router chooses for every token. It is first supervised by an
oracle, which knows the member that is right where a digit of a result is written and draws any member elsewhere, and
then trained by `ppo` at several prices (`RLAEConfig.member_cost`). A picker chooses once, from the prompt
(`EnsembleConfig(select="prompt")`), and is trained by `ppo` alone. They are measured with all members mixed by the
policy's weights, with the member of the largest weight, and with a member that is drawn for every span.

The members cost the same to run. To have something to save, the member for products is priced as if it were large.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.studies.cost.run import KINDS, MEMBERS, PRICES, RELATIVE_PRICES, plan
from tests.studies.cost.tables import cost_picture, cost_table
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import as_markdown


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing, prints the tables, and writes them with a picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.cost", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--seeds", type=int, default=2, help="of each training")
    parser.add_argument("--prices", nargs="+", type=float, default=list(PRICES), help="of a token, for routers")
    parser.add_argument("--questions", type=int, default=200, help="held-out questions of each kind")
    parser.add_argument("--router-rollouts", type=int, default=10, help="of each router")
    parser.add_argument("--picker-rollouts", type=int, default=8, help="of each picker")
    parser.add_argument("--supervised-epochs", type=int, default=12, help="before reinforcement learning")
    parser.add_argument("--supervised-questions", type=int, default=640, help="before reinforcement learning")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args(arguments)
    settings = {
        "members": MEMBERS,
        "relative_prices": list(RELATIVE_PRICES),
        **{
            name: getattr(options, name)
            for name in ("questions", "router_rollouts", "picker_rollouts", "supervised_epochs", "supervised_questions")
        },
    }
    console = Console(width=150)
    results = ResultFolder(options.output, settings)
    runs = plan(options.seeds, options.prices)
    do_runs(runs, results, options.jobs, console)
    entries = [(run, found) for run in runs if (found := results.read(run.name)) is not None]
    for kind in KINDS:
        table = cost_table(entries, kind, RELATIVE_PRICES)
        console.print(table.shown(f"questions: {kind}"))
        as_markdown(table, results.folder / f"{kind.replace(' ', '_')}.md")
    cost_picture(entries, KINDS, RELATIVE_PRICES, results.folder / "frontier.svg")
    spent = sum(found["cpu_seconds"] for _, found in entries)
    console.print(f"{len(entries)} runs, {spent / 60:.0f} minutes of one core in all")


if __name__ == "__main__":
    main()
