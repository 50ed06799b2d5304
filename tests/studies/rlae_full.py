"""What else there is to know of policies that learned on chains: `python -m tests.studies.rlae --full`.

Four experiments on members with one tokenizer: two members instead of three, policies that are asked what they were not
trained on (longer chains, the other form), fewer questions to train on, and policies that see something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_rlae.policies import StaticPolicy
from hf_rlae.tasks.chains import FORMS, Question
from hf_rlae.zoo import load_demo_members
from tests.studies import chain_policies as chains
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder, file_name
from tests.studies.rlae_tables import StudyTable, accuracy_cells, as_markdown, right_answers_of, settings_told

KIND, SPAN_LENGTH = "shared", 1
TWO_OPERATORS = ("+", "-")
"""Of the first two members."""
BASELINES = ("uniform weights", "best fixed weights", "oracle switching")
TRANSFER: dict[str, dict[str, Any]] = {
    "2 and 3 steps, symbolic": {"forms": ("symbolic",)},
    "2 and 3 steps, worded": {"forms": ("worded",)},
    "4 steps, symbolic": {"forms": ("symbolic",), "num_steps": (4,)},
    "4 steps, worded": {"forms": ("worded",), "num_steps": (4,)},
}
"""What a policy that was trained on symbolic chains of one to three steps is tested on."""
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "two members": (),
    "transfer": (),
    "training questions": ("16", "64", "256", "all"),
    "observation": ("members", "members, newest token", "text", "both"),
}
"""What varies in an experiment, if anything but the objective: different questions in training; what a policy sees, of
members the mean of several hidden states or the newest one alone."""


@dataclass(frozen=True)
class Variation:
    """One thing to measure.

    Attributes:
        experiment (`str`): of `EXPERIMENTS`.
        method (`str`): what gives the weights: an objective, or one of `BASELINES`.
        seed (`int`): of the training.
        value (`str`): of what varies; empty if nothing does.
    """

    experiment: str
    method: str
    seed: int = 0
    value: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        return file_name(self.experiment, self.method, self.value, f"seed{self.seed}")

    @property
    def num_members(self) -> int:
        """M."""
        return 2 if self.experiment == "two members" else 3

    def training(self, settings: dict[str, Any]) -> chains.PolicyTraining | None:
        """How a policy is trained; `None` where nothing is trained."""
        if self.method not in chains.TRAINED:
            return None
        training = chains.TRAINED[self.method]
        observation = self.value if self.experiment == "observation" else training.observation
        return chains.replaced(
            training,
            num_questions=int(self.value) if self.value.isdigit() else None,
            observation=observation.split(",")[0],
            policy={"pooled_tokens": 1} if observation.endswith("newest token") else {},
            forms=("symbolic",) if self.experiment == "transfer" else FORMS,
            **({"rollouts": settings["rollouts"]} if settings["rollouts"] else {}),
        )

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains if there is something to train, then answers the questions of every test.

        Returns:
            `dict`: `right` (for each test a string of 0 and 1, one a question) and `accuracy` (of the first test).
        """
        members = load_demo_members(KIND)[: self.num_members]
        found: dict[str, Any] = {}
        policy = self._policy(members, settings, found)
        ensemble = chains.with_policy(members, policy, SPAN_LENGTH)
        right = {
            name: chains.as_digits(chains.right_answers(ensemble, questions)[0])
            for name, questions in self.tests(settings["questions"]).items()
        }
        first = next(iter(right.values()))
        return {**found, "right": right, "accuracy": first.count("1") / len(first)}

    def tests(self, count: int, split: str = "test") -> dict[str, list[Question]]:
        """The questions of every test, by its name."""
        if self.experiment == "transfer":
            return {name: chains.held_out_questions(count, split, **options) for name, options in TRANSFER.items()}
        if self.experiment == "two members":
            return {"2 and 3 steps, + and -": chains.held_out_questions(count, split, operators=TWO_OPERATORS)}
        return {"2 and 3 steps": chains.held_out_questions(count, split)}

    def _policy(self, members: Sequence[Any], settings: dict[str, Any], found: dict[str, Any]) -> Any:
        if self.method == "best fixed weights":
            found["weights"] = self._best_weights(members, settings)
            return StaticPolicy(found["weights"])
        if self.method in chains.FREE_POLICIES:
            return chains.FREE_POLICIES[self.method](len(members))
        training = self.training(settings)
        assert training is not None
        questions = None
        if self.experiment == "two members":
            questions = chains.training_questions(training, TWO_OPERATORS)
        policy, found["rewards"] = chains.train_policy(members, SPAN_LENGTH, training, self.seed, questions=questions)
        return policy

    def _best_weights(self, members: Sequence[Any], settings: dict[str, Any]) -> list[float]:
        tests = self.tests(settings["validation_questions"], "validation")
        return chains.best_weights(members, next(iter(tests.values())), settings["resolution"])


def plan_full(seeds: int) -> list[Variation]:
    """All runs of the experiments, the cheap ones first."""
    runs = [Variation(experiment, method) for experiment in EXPERIMENTS for method in BASELINES]
    for seed in range(seeds):
        for experiment, values in EXPERIMENTS.items():
            for value in values or ("",):
                runs += [Variation(experiment, method, seed, value) for method in chains.TRAINED]
    return runs


def do_full(folder: Path, settings: dict[str, Any], seeds: int, jobs: int, console: Console) -> None:
    """Does the runs that are missing, and writes one table for each experiment into a folder of its own."""
    runs = plan_full(seeds)
    for experiment in EXPERIMENTS:
        results = ResultFolder(folder / experiment.replace(" ", "_"), settings)
        chosen = [run for run in runs if run.experiment == experiment]
        do_runs(chosen, results, jobs, console)
        found = [(run, results.read(run.name) or {}) for run in chosen]
        table = variation_table(found)
        console.print(table.shown(experiment))
        as_markdown(table, results.folder / "table.md")


def variation_table(entries: Sequence[tuple[Variation, dict[str, Any]]]) -> StudyTable:
    """One row a method and value of what varies, for every test three columns; see `accuracy_table`."""
    tests = list(entries[0][1]["right"])
    kinds = list(dict.fromkeys((run.method, run.value) for run, _ in entries))
    right = {
        (method, value, test): right_answers_of(
            [found["right"][test] for run, found in entries if (run.method, run.value) == (method, value)]
        )
        for method, value in kinds
        for test in tests
    }
    rows = []
    for method, value in kinds:
        row = [f"{method}, {value}" if value else method]
        for test in tests:
            fixed, oracle = (right[name, "", test] for name in BASELINES[1:])
            row += accuracy_cells(right[method, value, test], fixed, oracle, method in BASELINES[1:])
        rows.append(tuple(row))
    headings = [title for test in tests for title in (f"{test}: right", "above best fixed", "headroom")]
    return StudyTable(("weights", *headings), tuple(rows), settings_told(method for method, _ in kinds))
