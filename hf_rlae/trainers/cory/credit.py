"""Credit: the rewards that each agent of a chain learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.rewards.weighted_sums import total_rewards

CREDITS = ("team", "own", "difference", "shapley")
OBSERVER_GROUPS = ("own_reference", "shared_reference")

_EPS = 1e-4
"""TRL's, added to standard deviations."""


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


def normalized_rewards(rewards: torch.Tensor, weights: torch.Tensor, num_generations: int) -> torch.Tensor:
    """One agent's rewards, standardised within each prompt, so that those of several agents can be added.

    `z = (r - mean) / (std + 1e-4)`, per reward function, where `std` is that of the weighted sum over functions. The
    weighted sum of z has mean 0 and deviation 1 in each group: it is GRPO's advantage of the agent alone.

    Why: with independent rewards of equal variance, the deviation of the sum over N agents is `sqrt(N)` times that of
    one, and with equal rewards N times. A group baseline that divides the sum by its own deviation multiplies the
    agent's own signal by `1 / sqrt(N)` to `1 / N`, while the KL term stays as it is. Sums of z that are not divided
    again keep the agent's own signal as large as without a team, and no agent's rewards outweigh another's.

    Source: ours; GRPO (arXiv 2402.03300) for the standardisation.

    Args:
        rewards (`torch.Tensor` of shape `(B, F)`): the completions of one prompt are adjacent; NaN where a function
            could not judge, which stays.
        weights (`torch.Tensor` of shape `(F,)`): of the functions.
        num_generations (`int`): G, completions per prompt.

    Returns:
        `torch.Tensor` of shape `(B, F)`: 0 where all rewards of a prompt are equal.

    Example:

    >>> normalized_rewards(torch.tensor([[0.0], [2.0], [5.0], [5.0]]), torch.ones(1), 2)[:, 0]
    tensor([-0.7071,  0.7071,  0.0000,  0.0000])
    """
    groups = rewards.view(-1, num_generations, rewards.shape[1])
    totals = total_rewards(rewards, weights).view(-1, num_generations)
    judged = ~totals.isnan()
    mean = totals.nanmean(1, keepdim=True)
    squares = torch.where(judged, (totals - mean).square(), 0).sum(1)
    deviation = (squares / (judged.sum(1) - 1).clamp(min=1)).sqrt()
    standard = (groups - groups.nanmean(1, keepdim=True)) / (deviation[:, None, None] + _EPS)
    return standard.view_as(rewards)


def tied_rewards(rewards: Sequence[torch.Tensor], position: int, num_generations: int) -> list[torch.Tensor]:
    """The rewards of a chain as one agent sees them, if all agents read the answers of a prompt's first completion.

    The agent's own rewards stay. Those of earlier agents are the rewards of the answers that were read: the first of
    each prompt. Those of later agents are means over the prompt, because no answer but the first can change them, and
    all of them depend on the first. Both are constants within a group.

    Source: ours.

    Args:
        rewards (`Sequence[torch.Tensor]` of shape `(B, F)`): one tensor per agent, in the order of the chain.
        position (`int`): of the agent.
        num_generations (`int`): G, completions per prompt.

    Example:

    >>> pioneer, observer = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [4.0]])
    >>> tied_rewards([pioneer, observer], 0, 2)[1].tolist(), tied_rewards([pioneer, observer], 1, 2)[0].tolist()
    ([[3.0], [3.0]], [[1.0], [1.0]])
    """
    found = []
    for place, own in enumerate(rewards):
        groups = own.view(-1, num_generations, own.shape[1])
        if place != position:
            one = groups[:, :1] if place < position else groups.nanmean(1, keepdim=True)
            groups = one.expand_as(groups)
        found.append(groups.reshape_as(own))
    return found


def difference_rewards(reach: torch.Tensor, earlier: torch.Tensor, num_generations: int) -> torch.Tensor:
    """What an agent's answer changed, compared with the same agent's other answers in the same situation.

    A difference reward is the team's reward less the team's reward with the agent's answer replaced by a default one.
    The rewards of earlier agents are in both and cancel; what is left is R, the sum of the rewards that the answer can
    change. The default is the mean R of the agent's other answers to the prompt that followed earlier answers with the
    same rewards (or, if there are none, of all its other answers to the prompt). It does not depend on the answer
    itself, so the expected gradient is that of R. No further completions are written.

    Under a group baseline, the pioneer's advantages are those of `"own"` (up to the factor G / (G - 1) if they are not
    divided by a deviation); an observer's are not, because its answers are compared with those after equally good ones.

    Source: COMA (arXiv 1705.08926) for difference rewards and counterfactual baselines; the default from other samples
    of the prompt is ours.

    Args:
        reach (`torch.Tensor` of shape `(B, F)`): the sums R; the completions of one prompt are adjacent.
        earlier (`torch.Tensor` of shape `(B, K)`): the rewards of the earlier answers that were read; K may be 0.
        num_generations (`int`): G, completions per prompt.

    Returns:
        `torch.Tensor` of shape `(B, F)`: NaN where R is, 0 where no other answer could be judged.

    Example:

    >>> reach, earlier = torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    >>> difference_rewards(reach, earlier, 4)[:, 0]
    tensor([ 1., -1.,  0.,  0.])
    """
    groups = reach.view(-1, num_generations, reach.shape[1])
    before = earlier.nan_to_num(nan=torch.inf).view(len(groups), num_generations, earlier.shape[1])
    is_other = ~torch.eye(num_generations, dtype=torch.bool, device=reach.device)
    is_like = (before[:, :, None] == before[:, None]).all(-1) & is_other  # (prompts, G, G)
    judged = ~groups.isnan()[:, None]
    chosen = is_like[..., None] & judged
    chosen = torch.where(chosen.any(2, keepdim=True), chosen, is_other[..., None] & judged)
    count = chosen.sum(2)
    default = torch.where(chosen, groups[:, None], 0).sum(2) / count.clamp(min=1)
    return (groups - torch.where(count > 0, default, groups)).view_as(reach)


def credited_rewards(
    rewards: Sequence[torch.Tensor], position: int, credit: str, is_reader: Sequence[bool], num_generations: int = 1
) -> torch.Tensor:
    """The rewards that the agent at one position of the chain learns from.

    `"team"` is the sum of all agents' rewards. `"own"` is the sum of the rewards that the agent's answer can change:
    its own and those of later agents that read it. Both have the same expected gradient, because rewards that the agent
    cannot change are constants; under a group baseline they are noise. `"difference"`: see [`difference_rewards`]. For
    `"shapley"` see [`shapley_values`], which needs the rewards of smaller teams.

    Source: CORY (arXiv 2410.06101) for `"team"`; `"own"` is ours.

    Args:
        rewards (`Sequence[torch.Tensor]` of shape `(B, F)`): one tensor per agent, in the order of the chain; NaN
            where a function could not judge, which makes the sum NaN.
        position (`int`): of the agent.
        credit (`str`): `"team"`, `"own"` or `"difference"`.
        is_reader (`Sequence[bool]`): for each agent, whether it reads the answers before its own.
        num_generations (`int`): G, completions per prompt; for `"difference"`.

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
    reach = torch.stack([rewards[position], *(rewards[later] for later in changed)]).sum(0)
    if credit == "own":
        return reach
    read = list(rewards[:position]) if is_reader[position] else []
    return difference_rewards(reach, torch.cat([reach[:, :0], *read], dim=1), num_generations)
