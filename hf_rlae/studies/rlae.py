"""What `RLAETrainer` learns on the embedded specialists: `python -m hf_rlae.studies.rlae`.

For every set of members and every span length: each member alone, uniform weights, the best fixed weights (found on a
validation split), policies without training, the oracle, and policies trained by `ppo`, `mappo` and `mixture`, with
controls: a policy that sees nothing, one whose rewards were shuffled, and one that was supervised by the oracle.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from hf_rlae.errors import ConfigError
from hf_rlae.evaluation.fixed_weights import best_fixed_weights
from hf_rlae.policy import StaticPolicy
from hf_rlae.studies import chain_policies as chains
from hf_rlae.studies.results import ResultFolder
from hf_rlae.studies.rlae_tables import accuracy_picture, accuracy_table, as_markdown
from hf_rlae.tasks.chains import draw_questions
from hf_rlae.zoo import MEMBER_SETS, load_members

TRAINED = {
    "ppo": chains.TrainingSettings("ppo", concentration=1.0, advantages="group_relative", entropy_coef=0.0),
    "mappo": chains.TrainingSettings("mappo", noise=2.0, advantages="group_relative", entropy_coef=0.0),
    "mixture": chains.TrainingSettings("mixture", entropy_coef=0.06),
}
"""How each objective is trained."""

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
        return f"{self.members}-span{self.span_length}-{self.method.replace(' ', '_')}-seed{self.seed}"


def plan(kinds: Sequence[str], span_lengths: Sequence[int], seeds: int, control_seeds: int) -> list[Run]:
    """All runs of the study, the cheap ones first."""
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
                runs += [Run(kind, length, method, seed) for method in TRAINED if seed < seeds]
                runs += [Run(kind, length, method, seed) for method in CONTROLS if seed < control_seeds]
    return runs


def measure(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    """Does one run: trains if there is something to train, then answers the test questions.

    Returns:
        `dict`: `right` (a string of 0 and 1, one a question), `seconds`, and what else is worth keeping.
    """
    started = time.perf_counter()
    members = load_members(run.members)
    test = draw_questions(settings["questions"], chains.TEST_SEED)
    found: dict[str, Any] = {}
    policy = _policy(run, members, settings, found)
    right = chains.right_answers(chains.with_policy(members, policy, run.span_length), test)[0]
    found |= {
        "right": "".join("1" if value else "0" for value in right),
        "accuracy": float(right.mean()),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return found


def _policy(run: Run, members: Sequence[Any], settings: dict[str, Any], found: dict[str, Any]) -> Any:
    names = MEMBER_SETS[run.members]
    if run.method.endswith(" alone"):
        place = names.index(run.method.removesuffix(" alone"))
        return StaticPolicy([float(place == index) for index in range(len(names))])
    if run.method == "best fixed weights":
        found["weights"] = _best_weights(members, settings)
        return StaticPolicy(found["weights"])
    if run.method in chains.FREE_POLICIES:
        return chains.FREE_POLICIES[run.method](len(names))
    method = run.method if run.method in TRAINED else "mixture"
    training = TRAINED[method]
    if settings["rollouts"]:
        training = chains.replaced(training, rollouts=settings["rollouts"])
    found["training"] = chains.settings_as_json(training)
    if run.method == "supervised":
        return chains.supervise_policy(members, run.span_length, training, run.seed)
    options: dict[str, Any] = {}
    if run.method == "blind":
        options["kind"] = chains.BlindPolicy
    if run.method == "shuffled rewards":
        options["reward"] = chains.ShuffledReward(run.seed)
    policy, found["rewards"] = chains.train_policy(members, run.span_length, training, run.seed, **options)
    return policy


def _best_weights(members: Sequence[Any], settings: dict[str, Any]) -> list[float]:
    validation = draw_questions(settings["validation_questions"], chains.VALIDATION_SEED)
    ensemble = chains.with_policy(members, None, 8)

    def score(weights: Sequence[float]) -> float:
        ensemble.set_policy(StaticPolicy(list(weights)))
        return float(chains.right_answers(ensemble, validation).mean())

    return list(best_fixed_weights(score, len(members), settings["resolution"]).weights)


def _work(run: Run, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    torch.set_num_threads(1)
    disable_progress_bar()
    return run, measure(run, settings)


def do_runs(runs: Sequence[Run], results: ResultFolder, jobs: int, console: Console) -> None:
    """Does what has not been done yet, `jobs` at a time, one thread each, with a progress bar."""
    left = [run for run in runs if results.read(run.name) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - len(left))
        work: Callable[[Run], tuple[Run, dict[str, Any]]] = partial(_work, settings=results.settings)
        if jobs == 1:
            for run in left:
                results.write(run.name, work(run)[1])
                progress.advance(task)
            return
        with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=8) as pool:
            for run, found in pool.imap_unordered(work, left):
                results.write(run.name, found)
                progress.update(task, advance=1, description=f"{run.method} {found['accuracy']:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m hf_rlae.studies.rlae", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--members", nargs="+", default=["shared", "different"], choices=list(MEMBER_SETS))
    parser.add_argument("--span-lengths", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seeds", type=int, default=5, help="of each objective")
    parser.add_argument("--control-seeds", type=int, default=2, help="of each control")
    parser.add_argument("--questions", type=int, default=400, help="held-out questions")
    parser.add_argument("--rollouts", type=int, default=None, help="of each training, if not the study's own number")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args(arguments)
    if min(options.span_lengths) < 1 or options.seeds < 1 or options.jobs < 1 or options.questions < 1:
        raise ConfigError("--span-lengths, --seeds, --questions and --jobs must be at least 1")
    settings = {
        "questions": options.questions,
        "validation_questions": 200,
        "resolution": 8,
        "rollouts": options.rollouts,
    }
    results = ResultFolder(options.output, settings)
    runs = plan(options.members, options.span_lengths, options.seeds, options.control_seeds)
    console = Console(width=140)
    do_runs(runs, results, options.jobs, console)
    found = [(run, results.read(run.name)) for run in runs]
    entries = [(run, outcome) for run, outcome in found if outcome is not None]
    for kind in options.members:
        of_kind = [(run, outcome) for run, outcome in entries if run.members == kind]
        table = accuracy_table(of_kind, options.span_lengths)
        console.print(table.shown(f"{kind} tokenizers"))
        as_markdown(table, options.output / f"{kind}.md")
        accuracy_picture(of_kind, options.span_lengths, options.output / f"{kind}.svg")


if __name__ == "__main__":
    main()
