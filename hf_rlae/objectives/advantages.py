"""Advantages from rewards: how much better an action was than expected. No gradients flow through them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_rlae.checks import COUNT, POSITIVE, SHARE, check_choice, check_number
from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.checks import check_axes

SCALES = ("group", "batch", "none")
"""What group-relative advantages are divided by; TRL's words."""


@torch.no_grad()
def terminal_rewards(rewards: torch.Tensor, span_mask: torch.Tensor) -> torch.Tensor:
    """The reward of each completion at its last span.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): of the finished completions.
        span_mask (`torch.Tensor` of shape `(B, S)`): 1 where there is a span.

    Returns:
        `torch.Tensor` of shape `(B, S)`: 0 except at the last span of each row.

    Raises:
        ObjectiveError: shapes that do not fit.

    Example:

    >>> terminal_rewards(torch.tensor([1.0, 0.5]), torch.tensor([[1, 1, 1], [1, 0, 0]]))
    tensor([[0.0000, 0.0000, 1.0000],
            [0.5000, 0.0000, 0.0000]])
    """
    check_axes({"rewards": rewards, "span_mask": span_mask}, {"rewards": ("B",), "span_mask": ("BS",)})
    mask = span_mask != 0
    later = mask.flip(1).cumsum(1).flip(1)
    return torch.where(mask & (later == 1), rewards[:, None], rewards.new_zeros(()))


@torch.no_grad()
def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation over spans.

    With `delta_s = r_s + gamma V_{s+1} - V_s`, where V is 0 after a row's last span,
    `A_s = delta_s + gamma lambda A_{s+1}`; returns are `A_s + V_s`. `lambda = 1` gives the discounted sum of rewards
    minus the value (unbiased), `lambda = 0` the error of one step (low variance).

    Entries outside the mask are skipped, wherever they are and whatever they hold. Leave rows that could not be judged
    out of the mask: rewards that are not finite are not masked for you.

    Source: arXiv 1506.02438, equation 16; the defaults, which hold for any number of spans: ours.

    Args:
        rewards (`torch.Tensor` of shape `(B, S)`): see [`terminal_rewards`] for one number at the end.
        values (`torch.Tensor` of shape `(B, S)`): the critic's estimates at the spans' first tokens.
        mask (`torch.Tensor` of shape `(B, S)`): 1 where there is a span.
        gamma (`float`, defaults to 1.0): discount per span, from 0 to 1.
        lam (`float`, defaults to 1.0): lambda, from 0 to 1.

    Returns:
        `(advantages, returns)`, each of shape `(B, S)`, 0 where there is no span.

    Raises:
        ObjectiveError: shapes that do not fit.
        ConfigError: `gamma` or `lam` outside 0 to 1.

    Example:

    >>> mask = torch.tensor([[1, 1], [1, 0]])
    >>> rewards = terminal_rewards(torch.tensor([1.0, 0.0]), mask)
    >>> advantages, returns = gae(rewards, torch.full((2, 2), 0.25), mask, gamma=1.0, lam=1.0)
    >>> advantages.tolist()
    [[0.75, 0.75], [-0.25, 0.0]]
    """
    check_axes(
        {"rewards": rewards, "values": values, "mask": mask}, {"rewards": ("BS",), "values": ("BS",), "mask": ("BS",)}
    )
    check_number("gamma", gamma, SHARE)
    check_number("lam", lam, SHARE)
    keep = mask != 0
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(len(values))
    for span in reversed(range(values.shape[1])):
        delta = rewards[:, span] + gamma * next_value - values[:, span]
        advantage = torch.where(keep[:, span], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(keep[:, span], values[:, span], next_value)
        advantages[:, span] = torch.where(keep[:, span], advantage, 0)
    return advantages, torch.where(keep, advantages + values, 0)


@torch.no_grad()
def group_relative(
    rewards: torch.Tensor, num_generations: int, scale: str = "group", eps: float = 1e-4
) -> torch.Tensor:
    """How much better a completion is than the others of its prompt; no critic is needed.

    `A_i = (r_i - mean of its group) / (std + eps)`. Rewards of NaN (could not be judged) are left out of mean and
    standard deviation, and their advantage is 0. The only judged completion of a group has the advantage 0 too.

    Source: GRPO (arXiv 2402.03300); without the standard deviation: Dr. GRPO (arXiv 2503.20783); `eps`, the unbiased
    standard deviation and the names of scales: TRL.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): the completions of one prompt are adjacent. With several processes:
            those of all processes, gathered.
        num_generations (`int`): G, completions per prompt; B is a multiple of G.
        scale (`str`, defaults to `"group"`): which standard deviation: of the `"group"`, of the whole `"batch"`, or
            `"none"`. Dividing by the group's gives more weight to prompts that are almost always or almost never
            solved.
        eps (`float`, defaults to 1e-4): added to the standard deviation.

    Returns:
        `torch.Tensor` of shape `(B,)`.

    Raises:
        ObjectiveError: rewards of another shape, infinite ones, or a number that G does not divide.
        ConfigError: an unknown scale, G below 1, or `eps` that is not above 0.

    Example:

    >>> group_relative(torch.tensor([1.0, 0.0, 1.0, torch.nan]), 2, scale="none")
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    check_axes({"rewards": rewards}, {"rewards": ("B",)})
    check_choice("scale", scale, SCALES)
    check_number("num_generations", num_generations, COUNT)
    check_number("eps", eps, POSITIVE)
    if len(rewards) % num_generations:
        raise ObjectiveError(
            f"rewards has {len(rewards)} entries, which is not a multiple of num_generations={num_generations}; give "
            "the rewards of complete groups, those of one prompt adjacent"
        )
    if bool(rewards.isinf().any()):
        row = int(rewards.isinf().nonzero()[0])
        raise ObjectiveError(
            f"rewards[{row}] is {float(rewards[row])}; give finite rewards, or NaN if it could not be judged"
        )
    groups = rewards.view(-1, num_generations)
    judged = ~groups.isnan()
    centred = groups - _mean(groups, judged, 1)
    if scale != "none":
        centred = centred / (_std(groups, judged, 1 if scale == "group" else None) + eps)
    return torch.where(judged, centred, 0).view(-1)


@torch.no_grad()
def whiten(
    advantages: torch.Tensor,
    mask: torch.Tensor,
    eps: float = 1e-8,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Advantages with mean 0 and standard deviation 1 over the entries that count.

    Args:
        advantages (`torch.Tensor` of any shape): of a whole batch, before it is split into minibatches.
        mask (`torch.Tensor` of the same shape): 1 for entries that count.
        eps (`float`, defaults to 1e-8): added to the standard deviation.
        total (callable, *optional*): adds up a number (a 0-d tensor) over the processes that hold parts of the batch;
            `None` if this is all of it.

    Returns:
        `torch.Tensor` of the same shape: 0 where an entry does not count or is the only one.

    Raises:
        ObjectiveError: shapes that differ.

    Example:

    >>> whiten(torch.tensor([3.0, 1.0, 7.0]), torch.tensor([1, 1, 0]))
    tensor([ 0.7071, -0.7071,  0.0000])
    """
    if advantages.shape != mask.shape:
        raise ObjectiveError(
            f"mask has shape {tuple(mask.shape)}, advantages has shape {tuple(advantages.shape)}; give one entry of "
            "the mask per advantage"
        )
    keep = mask != 0
    whole = total or (lambda number: number)
    count = whole(keep.sum())
    centred = torch.where(keep, advantages - whole(torch.where(keep, advantages, 0).sum()) / count.clamp(min=1), 0)
    std = (whole(centred.square().sum()) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + eps)


def _mean(values: torch.Tensor, keep: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    kept = torch.where(keep, values, 0)
    return kept.sum(dim, keepdim=True) / keep.sum(dim, keepdim=True).clamp(min=1)


def _std(values: torch.Tensor, keep: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """The unbiased standard deviation of the entries that are kept; 0 for a single number."""
    squares = torch.where(keep, (values - _mean(values, keep, dim)).square(), 0)
    count = keep.sum(dim, keepdim=True)
    return (squares.sum(dim, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
