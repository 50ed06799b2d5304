"""What `RLAETrainer` learns on the embedded specialists: `python -m tests.studies.rlae`.

For every set of members and every span length: each member alone, uniform weights, the best fixed weights (found on a
validation split), policies without training, the oracle, and policies trained by one recipe: by `ppo` and `mappo`, each
with both kinds of advantages, and by `mixture`, with controls: a policy that sees nothing, one whose rewards were
shuffled, and one that was supervised by the oracle.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_rlae.errors import ConfigError
from hf_rlae.policies import StaticPolicy
from hf_rlae.zoo import MEMBER_SETS, load_demo_members
from tests.studies import chain_policies as chains
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder, file_name
from tests.studies.rlae_full import do_full
from tests.studies.rlae_tables import WAYS, accuracy_picture, accuracy_table, as_markdown, settings_told, ways_table
from tests.studies.routing import sampled_accuracy

FULL_SPAN_LENGTHS, FULL_SEEDS = (1, 2, 4, 8, 16), 3
FURTHER_SEEDS = 2
"""Of the experiments at one span length."""
WAYS_SEEDS = 2
"""Trainings of each method that are evaluated in several ways."""

CONTROLS = ("blind", "shuffled rewards", "supervised")


@dataclass(frozen=True)
class Run:
    """One thing to measure.

    Attributes:
        members (`str`): the set, `"shared"` or `"different"`.
        span_length (`int`): tokens per span.
        method (`str`): what gives the weights.
        seed (`int`): of the training; 0 where nothing is trained.
    """

    members: str
    span_length: int
    method: str
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its file."""
        return file_name(self.members, f"span{self.span_length}", self.method, f"seed{self.seed}")

    def training(self, settings: dict[str, Any]) -> chains.PolicyTraining | None:
        """How a policy is trained; controls are as `mixture` is. `None` where nothing is trained."""
        if self.method not in (*chains.TRAINED, *CONTROLS):
            return None
        training = chains.TRAINED["mixture" if self.method in CONTROLS else self.method]
        return chains.replaced(training, rollouts=settings["rollouts"]) if settings["rollouts"] else training

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains if there is something to train, then answers the test questions.

        Returns:
            `dict`: `right` (a string of 0 and 1, one a question), `accuracy`, and what else is worth keeping.
        """
        members = load_demo_members(self.members)
        test = chains.held_out_questions(settings["questions"])
        found: dict[str, Any] = {}
        policy = _policy(self, members, settings, found)
        if self.method in chains.TRAINED and self.seed < WAYS_SEEDS:
            found["ways"] = ways_of(members, policy, self.span_length, test)
        right = chains.right_answers(chains.with_policy(members, policy, self.span_length), test)[0]
        return {**found, "right": chains.as_digits(right), "accuracy": float(right.mean())}


def ways_of(
    members: Sequence[Any], policy: Any, span_length: int, questions: Sequence[chains.Question]
) -> dict[str, float]:
    """Right answers of a learned policy in other ways of evaluation than greedy tokens of the mixture, by `WAYS`."""
    chosen = chains.with_policy(members, policy, span_length, max_active_members=1)
    mixed, drawn = (chains.with_policy(members, policy, span_length, draw=draw) for draw in (None, "span"))
    found = (
        float(chains.right_answers(chosen, questions).mean()),
        sampled_accuracy(mixed, questions, seed=0),
        sampled_accuracy(drawn, questions, seed=0),
    )
    return dict(zip(WAYS, found, strict=True))


def plan(
    kinds: Sequence[str],
    span_lengths: Sequence[int],
    seeds: int,
    control_seeds: int,
    methods: Sequence[str] = tuple(chains.TRAINED),
) -> list[Run]:
    """All runs of the study, the cheap ones first; what cannot learn is trained at the first span length only."""
    runs = []
    for kind in kinds:
        alone = [f"{name} alone" for name in MEMBER_SETS[kind]]
        for method in (*alone, "uniform weights", "best fixed weights", "PerplexityPolicy"):
            runs.append(Run(kind, span_lengths[0], method))
        for length in span_lengths:
            runs += [Run(kind, length, "EntropyPolicy"), Run(kind, length, "oracle switching")]
    for seed in range(max(seeds, control_seeds)):
        for kind in kinds:
            for length in span_lengths:
                runs += [Run(kind, length, method, seed) for method in methods if seed < seeds]
                controls = CONTROLS if length == span_lengths[0] else CONTROLS[-1:]
                runs += [Run(kind, length, method, seed) for method in controls if seed < control_seeds]
    return runs


def _policy(run: Run, members: Sequence[Any], settings: dict[str, Any], found: dict[str, Any]) -> Any:
    names = MEMBER_SETS[run.members]
    if run.method.endswith(" alone"):
        place = names.index(run.method.removesuffix(" alone"))
        return StaticPolicy([float(place == index) for index in range(len(names))])
    if run.method == "best fixed weights":
        validation = chains.held_out_questions(settings["validation_questions"], "validation")
        found["weights"] = chains.best_weights(members, validation, settings["resolution"])
        return StaticPolicy(found["weights"])
    if run.method in chains.FREE_POLICIES:
        return chains.FREE_POLICIES[run.method](len(names))
    training = run.training(settings)
    assert training is not None
    if run.method == "supervised":
        return chains.supervise_policy(members, run.span_length, training, run.seed)
    options: dict[str, Any] = {}
    if run.method == "blind":
        options["kind"] = chains.BlindPolicy
    if run.method == "shuffled rewards":
        options["reward"] = chains.ShuffledReward(run.seed)
    policy, found["rewards"] = chains.train_policy(members, run.span_length, training, run.seed, **options)
    return policy


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.rlae", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--members", nargs="+", default=["shared", "different"], choices=list(MEMBER_SETS))
    parser.add_argument("--span-lengths", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--methods", nargs="+", default=list(chains.TRAINED), choices=list(chains.TRAINED), help="to be trained"
    )
    parser.add_argument("--seeds", type=int, default=5, help="of each objective")
    parser.add_argument("--control-seeds", type=int, default=1, help="of each control")
    parser.add_argument("--questions", type=int, default=400, help="held-out questions")
    parser.add_argument("--rollouts", type=int, default=None, help="of each training, if not the study's own number")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument(
        "--full",
        action="store_true",
        help="the further experiments instead, each in its own folder, with members, methods and seeds of their own",
    )
    options = parser.parse_args(arguments)
    if min(options.span_lengths) < 1 or options.seeds < 1 or options.jobs < 1 or options.questions < 1:
        raise ConfigError("--span-lengths, --seeds, --questions and --jobs must be at least 1")
    settings = {
        "questions": options.questions,
        "validation_questions": 200,
        "resolution": 8,
        "rollouts": options.rollouts,
    }
    console = Console(width=190)
    if not options.full:
        runs = plan(options.members, options.span_lengths, options.seeds, options.control_seeds, options.methods)
        do_study(runs, ResultFolder(options.output, settings), options.jobs, console)
        return
    runs = plan(["shared"], FULL_SPAN_LENGTHS, FULL_SEEDS, control_seeds=0)
    do_study(runs, ResultFolder(options.output / "span_lengths", settings), options.jobs, console)
    do_full(options.output, settings, FURTHER_SEEDS, options.jobs, console)


def do_study(runs: Sequence[Run], results: ResultFolder, jobs: int, console: Console) -> None:
    """Does the runs that are missing, prints a table for each set of members, and writes tables and pictures."""
    do_runs(runs, results, jobs, console)
    entries = [(run, outcome) for run in runs if (outcome := results.read(run.name)) is not None]
    span_lengths = sorted({run.span_length for run in runs})
    for kind in dict.fromkeys(run.members for run in runs):
        of_kind = [(run, outcome) for run, outcome in entries if run.members == kind]
        table = accuracy_table(of_kind, span_lengths, settings_told(run.method for run, _ in of_kind))
        console.print(table.shown(f"{kind} tokenizers"))
        as_markdown(table, results.folder / f"{kind}.md")
        ways = ways_table(of_kind, span_lengths)
        console.print(ways.shown(f"{kind} tokenizers, ways of evaluation"))
        as_markdown(ways, results.folder / f"{kind}-evaluation.md")
        accuracy_picture(of_kind, span_lengths, results.folder / f"{kind}.svg")
    spent = sum(outcome["cpu_seconds"] for _, outcome in entries)
    console.print(f"{len(entries)} runs, {spent / 60:.0f} minutes of one core in all")


if __name__ == "__main__":
    main()
