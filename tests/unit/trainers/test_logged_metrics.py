"""The tables of logged metrics on the pages of the trainers, held against what trainers really log."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer, TokenPPOConfig, TokenPPOTrainer
from tests.support import cory, rlae

DOCS = Path(__file__).parents[3] / "docs"
OF_TRANSFORMERS = {"epoch", "total_flos"} | {
    f"{kind}_{name}"
    for kind in ("train", "eval")
    for name in ("runtime", "samples_per_second", "steps_per_second", "loss", "model_preparation_time")
}
"""What transformers adds to every log of a training."""


def listed(page: str, section: str = "Logged metrics") -> list[str]:
    """The metrics of a page, in its order."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"# {section}\n")[1]
    cells = re.findall(r"^\| (`.*?`) \|", re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def logged(trainer: Any) -> set[str]:
    """The names that a training and an evaluation log, without the prefix of evaluations."""
    trainer.train()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    names = {name for entry in trainer.state.log_history for name in entry} - OF_TRANSFORMERS - {"step"}
    return {name.removeprefix("eval_") for name in names} - {"runtime"}


def short(completions: list[Any], **_: Any) -> list[float | None]:
    """A second reward, which does not judge every completion."""
    return [None if index == 0 else float(len(text) < 20) for index, text in enumerate(completions)]


def rlae_runs(folder: Path) -> dict[str, Any]:
    train = functools.partial(rlae.trainer_of, folder, max_steps=2)
    constraints = {"reward": [rlae.vowels, short], "reward_constraints": {"short": 0.5}}
    priced = {"policy": {"action": "categorical"}}
    return {
        "ppo": train("ppo", eval_dataset=rlae.data(4), target_kl=1e-9, **constraints),
        "mappo": train("mappo"),
        "mixture": train("mixture"),
        "member_cost": train("ppo", ensemble=rlae.ensemble_of(**priced), member_cost=[0.001, 0.002]),
    }


def cory_runs(folder: Path) -> dict[str, Any]:
    train = functools.partial(cory.trainer_of, folder, max_steps=2)
    constraints = {"rewards": [rlae.vowels, short], "reward_constraints": {"short": 0.5}}
    return {
        "grpo": train(CoryTrainer, eval_dataset=rlae.data(4), **constraints),
        "shared rollouts": train(CoryTrainer, shared_rollouts=True),
        "three agents": train(CoryTrainer, num_agents=3),
        "rloo": train(CoryRLOOTrainer),
    }


def ppo_runs(folder: Path) -> dict[str, Any]:
    train = functools.partial(cory.trainer_of, folder, max_steps=2, beta=0.0, kl_target=6.0)
    return {
        "agents": train(CoryPPOTrainer, eval_dataset=rlae.data(4)),
        "full KL": train(CoryPPOTrainer, kl_penalty="full"),
    }


def token_ppo_runs(folder: Path) -> dict[str, Any]:
    train = functools.partial(cory.trainer_of, folder, TokenPPOTrainer, config_class=TokenPPOConfig, max_steps=2)
    return {"one agent": train(beta=0.0, eval_dataset=rlae.data(4))}


PAGES: dict[str, tuple[Any, list[str]]] = {
    # page: its runs, and the pages whose tables it builds on
    "rlae_trainer.md": (rlae_runs, []),
    "cory_trainer.md": (cory_runs, []),
    "cory_ppo_trainer.md": (ppo_runs, ["cory_trainer.md"]),
    "token_ppo_trainer.md": (token_ppo_runs, []),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_lists_what_is_logged_and_nothing_else(page, tmp_path):
    make, others = PAGES[page]
    own = {name: re.compile(re.sub(r"<\w+>", ".+", re.escape(name).replace(r"\<", "<"))) for name in listed(page)}
    known = [
        *own.values(),
        *(re.compile(re.sub(r"<\w+>", ".+", re.escape(n))) for each in others for n in listed(each)),
    ]
    found = set().union(*(logged(trainer) for trainer in make(tmp_path).values()))
    assert sorted(name for name in found if not any(pattern.fullmatch(name) for pattern in known)) == []
    assert sorted(n for n, p in own.items() if not any(map(p.fullmatch, found))) == []


def test_every_trainer_has_a_page_in_the_same_form():
    pages = {*PAGES, "cory_rloo_trainer.md"}
    assert {path.name for path in DOCS.glob("*_trainer.md")} == pages
    for page in pages:
        text = (DOCS / page).read_text(encoding="utf-8")
        parts = ("## Overview", "## Quick start", "## Looking deeper", "## Logged metrics", "## API")
        places = [text.index(part) for part in parts]
        assert places == sorted(places)
        assert "Customization" in text
