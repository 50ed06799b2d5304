"""Credit: the rewards that each agent of a chain learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CREDITS = ("team", "own")


def with_share(rewards: torch.Tensor, share: float) -> torch.Tensor:
    """Rewards times the share of their role; with a share of 0 they are 0 even where they could not be judged.

    Args:
        rewards (`torch.Tensor` of any shape): NaN where a function could not judge.
        share (`float`): see [`Role`].

    Example:

    >>> with_share(torch.tensor([1.0, torch.nan]), 0.0), with_share(torch.tensor([1.0, torch.nan]), 0.5)
    (tensor([0., 0.]), tensor([0.5000,    nan]))
    """
    return rewards * share if share else torch.zeros_like(rewards)


def credited_rewards(
    rewards: Sequence[torch.Tensor], position: int, credit: str, is_reader: Sequence[bool]
) -> torch.Tensor:
    """The rewards that the agent at one position of the chain learns from.

    `"team"` is the sum of all agents' rewards. `"own"` is the sum of the rewards that the agent's answer can change:
    its own and those of later agents that read it. Both have the same expected gradient, because rewards that the agent
    cannot change are constants; under a group baseline they are noise.

    Source: CORY (arXiv 2410.06101) for `"team"`; `"own"` is ours.

    Args:
        rewards (`Sequence[torch.Tensor]` of shape `(B, F)`): one tensor per agent, in the order of the chain; NaN
            where a function could not judge, which makes the sum NaN.
        position (`int`): of the agent.
        credit (`str`): one of `CREDITS`.
        is_reader (`Sequence[bool]`): for each agent, whether it reads the answers before its own.

    Returns:
        `torch.Tensor` of shape `(B, F)`.

    Example:

    >>> rewards = [torch.tensor([[1.0]]), torch.tensor([[0.5]])]
    >>> [credited_rewards(rewards, position, "own", [False, True]).item() for position in (0, 1)]
    [1.5, 0.5]
    """
    if credit == "team":
        return torch.stack(list(rewards)).sum(0)
    changed = [later for later in range(position + 1, len(rewards)) if is_reader[later]]
    return torch.stack([rewards[position], *(rewards[later] for later in changed)]).sum(0)
