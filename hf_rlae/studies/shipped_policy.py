"""The policy that comes with the embedded members: `python -m hf_rlae.studies.shipped_policy --output DIR`."""

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
from hf_rlae.studies.chain_policies import TrainingSettings, train_policy
from hf_rlae.zoo import MEMBER_SETS, load_members

SETTINGS = TrainingSettings("mixture", hidden_size=64)
SPAN_LENGTH = 2


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


def train(members: Sequence[Any], seed: int, console: Console) -> PolicyModel:
    """Trains a policy for the members, with a progress bar.

    Args:
        members: a set of embedded members.
        seed (`int`): of everything random.
        console (`rich.console.Console`): where progress is shown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        policy, _ = train_policy(members, SPAN_LENGTH, SETTINGS, seed, callbacks=[_Bar(progress)])
    return policy


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and saves the policies of both sets of members."""
    parser = argparse.ArgumentParser(prog="python -m hf_rlae.studies.shipped_policy", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder a set")
    parser.add_argument("--members", nargs="+", default=list(MEMBER_SETS), choices=list(MEMBER_SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    for kind in options.members:
        policy = train(load_members(kind), options.seed, Console())
        policy.save_pretrained(options.output / kind)


if __name__ == "__main__":
    main()
