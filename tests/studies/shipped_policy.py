"""The policies that come with the embedded members: `python -m tests.studies.shipped_policy --output DIR`.

For each set of members one policy a seed is trained; the one that answers most validation questions is kept. The test
questions have no part in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from hf_rlae.cli.demo_training import ROLLOUTS, SPAN_LENGTHS, train_policy
from hf_rlae.policies import PolicyModel
from hf_rlae.zoo import MEMBER_SETS, load_demo_members
from tests.studies.chain_policies import held_out_questions, right_answers, with_policy


def best_of(kind: str, seeds: Sequence[int], console: Console, rollouts: int = ROLLOUTS) -> PolicyModel:
    """Trains one policy a seed and returns the one that answers most validation questions.

    Args:
        kind (`str`): the set of members.
        seeds (`Sequence[int]`): of the trainings.
        console (`rich.console.Console`): where progress and results are shown.
        rollouts (`int`): of each training.
    """
    members = load_demo_members(kind)
    validation = held_out_questions(400, "validation")
    found: list[tuple[float, PolicyModel]] = []
    for seed in seeds:
        policy = train_policy(kind, members, console, seed, rollouts)
        right = float(right_answers(with_policy(members, policy, SPAN_LENGTHS[kind]), validation).mean())
        console.print(f"{kind}, seed {seed}: {right:.3f} of the validation questions")
        found.append((right, policy))
    return max(found, key=lambda entry: entry[0])[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and saves the policies of both sets of members."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.shipped_policy", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder a set")
    parser.add_argument("--members", nargs="+", default=list(MEMBER_SETS), choices=list(MEMBER_SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings of each set")
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="of each training")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    for kind in options.members:
        best_of(kind, options.seeds, Console(), options.rollouts).save_pretrained(options.output / kind)


if __name__ == "__main__":
    main()
