"""One training of the study: which family, with which learning rate and seed."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.studies.cory_references.base import ANSWER_TOKENS, load_base, questions, split_questions
from tests.studies.cory_references.families import FAMILIES, trainer_of
from tests.studies.cory_references.watch import ALONE, RoleWatch
from tests.studies.results import provenance


@dataclass(frozen=True)
class Run:
    """One training, watched.

    Attributes:
        family (`str`): of `FAMILIES`.
        rate (`float`): learning rate, the same throughout.
        seed (`int`): of the adapters, the order of the prompts, and all texts.
        rollouts (`int`): of the training.
        base (`Path`): the folder of the base.
    """

    family: str
    rate: float
    seed: int
    rollouts: int
    base: Path

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.family.replace(',', '').replace(' ', '_')}-rate{self.rate:g}-seed{self.seed}"

    def training(self, settings: dict[str, Any]) -> None:
        """Nothing beyond its name and the study's settings, which results are kept by."""

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains, and watches all agents.

        Returns:
            `dict`: what tells the run apart, with the `commit` of its code; `views`, see [`RoleWatch`];
            `training_seconds` (CPU, without evaluations); and `reward`, the last one alone, as the mean over agents.
        """
        family = FAMILIES[self.family]
        watch = train(self, settings)
        last = [curve[-1][1] for curve in watch.views[ALONE].values()]
        return {
            **{name: value for name, value in asdict(self).items() if name != "base"},
            "method": self.family,
            "reference": family.reference,
            "trainer": family.trainer.__name__,
            "options": dict(family.options),
            "commit": provenance()["commit"],
            "steps": self.rollouts * family.steps(settings),
            "texts_an_agent": self.rollouts * family.texts * settings["texts"],
            "texts": self.rollouts * family.texts * settings["texts"] * family.written,
            "views": watch.views,
            "training_seconds": round(watch.training_seconds, 2),
            "evaluation_seconds": round(watch.evaluation_seconds, 2),
            "reward": sum(last) / len(last),
        }


def train(run: Run, settings: dict[str, Any]) -> RoleWatch:
    """Does a run's training; what was watched is returned."""
    family, seed = FAMILIES[run.family], settings["base"]["seed"]
    held_out = questions(split_questions(seed)[1][: settings["questions"]])
    every = settings["every"] * family.steps(settings)
    watch = RoleWatch(list(held_out["prompt"]), list(held_out["answer"]), every, ANSWER_TOKENS)
    torch.manual_seed(run.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(family, load_base(run.base), run.rate, run.seed, run.rollouts, settings, folder)
        watch.trainer = trainer
        trainer.add_callback(watch)
        trainer.train()
    return watch
