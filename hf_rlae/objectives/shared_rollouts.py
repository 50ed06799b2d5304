"""A clipped surrogate for completions that another agent wrote."""

from __future__ import annotations

import torch

from hf_rlae.checks import NOT_NEGATIVE, SHARE, check_number
from hf_rlae.objectives.advantages import group_relative
from hf_rlae.objectives.checks import check_axes
from hf_rlae.objectives.reductions import masked_mean
from hf_rlae.objectives.surrogate import Metrics


@torch.no_grad()
def shared_advantages(own: torch.Tensor, other: torch.Tensor, num_generations: int) -> torch.Tensor:
    """How much better another agent's completions are than those of both agents to the same prompt; at least 0.

    `A = max((r - mean) / (std + 1e-4), 0)`, where mean and deviation are those of both agents' 2 G rewards. So only
    completions with a reward above the mean are learned from; with rewards of 0 and 1, the right ones, unless all are
    right.

    Source: HACPO (arXiv 2603.02604) for the joint baseline, without its capability ratios, since all agents begin as
    copies of one model and exchange roles; leaving out worse completions is ours.

    Args:
        own, other (`torch.Tensor` of shape `(B,)`): the rewards of the learning agent and of the other; those of one
            prompt are adjacent; NaN where none could be given.
        num_generations (`int`): G, completions per prompt and agent.

    Returns:
        `torch.Tensor` of shape `(B,)`: of the other agent's completions.

    Example:

    >>> shared_advantages(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), 2)
    tensor([1.4997, 0.0000])
    """
    both = torch.cat([own.view(-1, num_generations), other.view(-1, num_generations)], dim=1)
    found = group_relative(both.flatten(), 2 * num_generations).view_as(both)
    return found[:, num_generations:].clamp(min=0).reshape_as(other)


def shared_rollout_loss(
    per_token_logps: torch.Tensor,
    source_logps: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    delta: float = 0.2,
    alpha: float = 1.0,
) -> tuple[torch.Tensor, Metrics]:
    """The negative surrogate of completions that another agent wrote; its sum over rows.

    `-sum_b clip(s_b, 1 - delta, 1) sg(clip(s_b, 1 - delta, 1))^alpha A_b`, where `s_b` is the ratio of the completion's
    probabilities under the learning agent, given its own prompt, and under the agent that wrote it: the geometric mean
    over tokens. `sg` has no gradient. So a completion has no gradient where the learning agent already finds it at
    least as likely, or much less likely; and the less likely it is, the less it counts.

    Source: HACPO (arXiv 2603.02604), equation 59 in its public code (`zzx-peter/HACRL-code`), without capability ratios
    and without narrowing the range from update to update.

    Args:
        per_token_logps (`torch.Tensor` of shape `(B, T)`): of the learning agent, in nats.
        source_logps (`torch.Tensor` of shape `(B,)`): the mean over tokens under the agent that wrote the completion.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that count.
        advantages (`torch.Tensor` of shape `(B,)`): see [`shared_advantages`]; rows with 0 do not count.
        delta (`float`, defaults to 0.2): width of the range, from 0 to 1.
        alpha (`float`, defaults to 1.0): exponent of the weight, at least 0.

    Returns:
        `(loss, metrics)`: the loss has a gradient to `per_token_logps`. The metrics are `shared/ratio`, the mean of
        `s`, and `shared/clip_ratio`, the share outside of the range, both over rows that count.

    Raises:
        ObjectiveError: shapes that do not fit.
        ConfigError: `delta` or `alpha` out of range.

    Example:

    >>> logps = torch.tensor([[-1.0, -1.2], [-3.0, -3.0]], requires_grad=True)
    >>> source, mask, advantages = torch.tensor([-1.0, -1.0]), torch.ones(2, 2), torch.tensor([1.0, 1.0])
    >>> loss, metrics = shared_rollout_loss(logps, source, mask, advantages)
    >>> loss.backward()
    >>> logps.grad  # the second completion is out of range
    tensor([[-0.4094, -0.4094],
            [ 0.0000,  0.0000]])
    """
    given = {"per_token_logps": per_token_logps, "mask": mask, "source_logps": source_logps, "advantages": advantages}
    check_axes(given, {"per_token_logps": ("BT",), "mask": ("BT",), "source_logps": ("B",), "advantages": ("B",)})
    check_number("delta", delta, SHARE)
    check_number("alpha", alpha, NOT_NEGATIVE)
    keep = mask != 0
    logps = torch.where(keep, per_token_logps, 0).sum(1) / keep.sum(1).clamp(min=1)
    ratio = (logps - source_logps).exp()
    counts = (advantages != 0) & keep.any(1)
    clipped = ratio.clamp(1 - delta, 1)
    terms = clipped * clipped.detach() ** alpha * advantages
    is_clipped = (ratio != clipped).to(ratio.dtype)
    metrics = {
        "shared/ratio": masked_mean(ratio.detach(), counts),
        "shared/clip_ratio": masked_mean(is_clipped, counts),
    }
    return -torch.where(counts, terms, 0).sum(), metrics
