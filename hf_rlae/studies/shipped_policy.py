"""The policies that come with the embedded members: `python -m hf_rlae.studies.shipped_policy --output DIR`.

For each set of members one policy a seed is trained; the one that answers most validation questions is kept. The test
questions have no part in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from hf_rlae.policy import PolicyModel
from hf_rlae.studies.chain_policies import (
    TRAINED,
    held_out_questions,
    replaced,
    right_answers,
    train_policy,
    with_policy,
)
from hf_rlae.zoo import MEMBER_SETS, load_members

SPAN_LENGTHS = {"different": 2, "shared": 1}
"""Tokens per span, by the set of members."""

METHOD = "mixture"
"""Of those that the study of `RLAETrainer` trains."""


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


def train(
    kind: str, members: Sequence[Any], console: Console, seed: int = 0, rollouts: int | None = None
) -> PolicyModel:
    """Trains a policy for a set of members, as the study of `RLAETrainer` does, with a progress bar.

    Args:
        kind (`str`): the set, `"different"` or `"shared"`.
        members: its members.
        console (`rich.console.Console`): where progress is shown.
        seed (`int`, defaults to 0): of everything random.
        rollouts (`int`, *optional*): another number than the study's.
    """
    settings = TRAINED[METHOD]
    if rollouts is not None:
        settings = replaced(settings, rollouts=rollouts)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        policy, _ = train_policy(members, SPAN_LENGTHS[kind], settings, seed, callbacks=[_Bar(progress)])
    return policy


def best_of(kind: str, seeds: Sequence[int], console: Console, rollouts: int | None = None) -> PolicyModel:
    """Trains one policy a seed and returns the one that answers most validation questions.

    Args:
        kind (`str`): the set of members.
        seeds (`Sequence[int]`): of the trainings.
        console (`rich.console.Console`): where progress and results are shown.
        rollouts (`int`, *optional*): see `train`.
    """
    members = load_members(kind)
    validation = held_out_questions(400, "validation")
    found: list[tuple[float, PolicyModel]] = []
    for seed in seeds:
        policy = train(kind, members, console, seed, rollouts)
        right = float(right_answers(with_policy(members, policy, SPAN_LENGTHS[kind]), validation).mean())
        console.print(f"{kind}, seed {seed}: {right:.3f} of the validation questions")
        found.append((right, policy))
    return max(found, key=lambda entry: entry[0])[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and saves the policies of both sets of members."""
    parser = argparse.ArgumentParser(prog="python -m hf_rlae.studies.shipped_policy", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder a set")
    parser.add_argument("--members", nargs="+", default=list(MEMBER_SETS), choices=list(MEMBER_SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings of each set")
    parser.add_argument("--rollouts", type=int, default=None, help="of each training, if not the study's own number")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    for kind in options.members:
        best_of(kind, options.seeds, Console(), options.rollouts).save_pretrained(options.output / kind)


if __name__ == "__main__":
    main()
