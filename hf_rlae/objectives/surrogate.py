"""The terms of losses: the clipped surrogate, the clipped value loss, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_rlae.objectives.objective import ObjectiveOutput, Tensors
from hf_rlae.objectives.reductions import Number, explained_variance, masked_max, masked_mean, mean_of_row_means
from hf_rlae.objectives.settings import ObjectiveSettings

MAX_LOG_RATIO = 60.0
"""Ratios are between `exp(-60)` and `exp(60)`, so that they are finite in fp32; beyond it they have no gradient."""

Metrics = dict[str, torch.Tensor]


def policy_term(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    settings: ObjectiveSettings,
    num_items: Mapping[str, Number],
    unit: str,
) -> tuple[torch.Tensor, Metrics]:
    """The clipped surrogate, `-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)`, averaged.

    Source: PPO (arXiv 1707.06347), equation 7.

    Args:
        ratio (`torch.Tensor` of shape `(B, N)` or `(B, N, M)`): probability of each action now, divided by that in the
            rollout; for N actions, or for the actions of M agents, which are averaged. Finite even where it does not
            count.
        advantages (`torch.Tensor` of shape `(B, N)`).
        mask (`torch.BoolTensor` of shape `(B, N)`): entries that count; elsewhere `advantages` may hold anything.
        settings (`ObjectiveSettings`): clipping and reduction.
        num_items (`Mapping[str, float | torch.Tensor]`): numbers of `"sequences"` and of `unit`.
        unit (`str`): the kind of the N entries: `"spans"` or `"tokens"`.

    Returns:
        `(loss, metrics)`; the metrics are `policy_loss`, `clip_ratio`, `kl` and `ratio_max`.
    """
    present = mask if ratio.dim() == 2 else mask[..., None].expand_as(ratio)
    gain = torch.where(mask, advantages, 0)
    gain = gain if ratio.dim() == 2 else gain[..., None]
    low, high = 1 - settings.epsilon, 1 + (settings.epsilon_high or settings.epsilon)
    losses = -torch.minimum(ratio * gain, ratio.clamp(low, high) * gain)
    per_action = losses if ratio.dim() == 2 else losses.mean(-1)
    mean, counted = (mean_of_row_means, "sequences") if settings.reduction == "sequence" else (masked_mean, unit)
    loss = mean(per_action, mask, num_items[counted])
    with torch.no_grad():
        is_clipped = ((ratio > high) & (gain > 0)) | ((ratio < low) & (gain < 0))
        metrics = {
            "policy_loss": mean(per_action, mask),
            "clip_ratio": masked_mean(is_clipped.to(ratio.dtype), present),
            "kl": masked_mean(kl_estimate(ratio), present),
            "ratio_max": masked_max(ratio, present, default=1.0),
        }
    return loss, metrics


def density_ratio(log_probs: torch.Tensor, old_log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`exp(log_probs - old_log_probs)`; 1 where it does not count.

    Args:
        log_probs, old_log_probs (`torch.Tensor` of shape `(B, N)` or `(B, N, M)`): in nats.
        mask (`torch.BoolTensor` of shape `(B, N)`).

    Example:

    >>> density_ratio(torch.tensor([[0.5, torch.nan]]), torch.tensor([[0.5, 0.0]]), torch.tensor([[True, False]]))
    tensor([[1., 1.]])
    """
    present = mask if log_probs.dim() == 2 else mask[..., None]
    log_ratio = torch.where(present, log_probs - old_log_probs, 0)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def kl_estimate(ratio: torch.Tensor) -> torch.Tensor:
    """`(ratio - 1) - log(ratio)`: its mean over the rollout's actions estimates KL(rollout's policy || current policy).

    It is never negative, unbiased, and has a low variance if the policies are close.

    Source: the estimator k3 of http://joschu.net/blog/kl-approx.html.

    Args:
        ratio (`torch.Tensor` of any shape): probability now, divided by that in the rollout.

    Example:

    >>> kl_estimate(torch.tensor([1.0, 2.0]))
    tensor([0.0000, 0.3069])
    """
    log_ratio = ratio.log().clamp(min=-MAX_LOG_RATIO)
    return (ratio - 1) - log_ratio


def value_term(
    batch: Tensors,
    output: Tensors,
    mask: torch.Tensor,
    settings: ObjectiveSettings,
    num_items: Mapping[str, Number],
) -> tuple[torch.Tensor, Metrics]:
    """The clipped value loss, `max((V - R)^2, (V_old + clip(V - V_old, -value_epsilon, value_epsilon) - R)^2)`.

    Source: the squared error: PPO (arXiv 1707.06347), equation 9; clipping it: MAPPO (arXiv 2103.01955).

    Args:
        batch, output (`Mapping[str, torch.Tensor]`): `returns`, `old_values`, `values`, each of shape `(B, S)`. Without
            returns the loss is 0.
        mask (`torch.BoolTensor` of shape `(B, S)`): entries that count.
        settings (`ObjectiveSettings`): `value_epsilon`.
        num_items (`Mapping[str, float | torch.Tensor]`): number of `"spans"`.

    Returns:
        `(loss, metrics)`: before the coefficient, with `value_loss`, `value_clip_ratio` and `explained_variance`.
    """
    if batch.get("returns") is None:
        return torch.zeros((), device=mask.device), {}
    values, returns, before = (
        torch.where(mask, tensor, 0) for tensor in (output["values"], batch["returns"], batch["old_values"])
    )
    errors = (values - returns).square()
    is_clipped = torch.zeros_like(mask)
    if settings.value_epsilon is not None:
        moved = (values - before).clamp(-settings.value_epsilon, settings.value_epsilon)
        clipped = (before + moved - returns).square()
        # rounding alone may make the clipped error larger
        is_clipped = ((values - before).abs() > settings.value_epsilon) & (clipped > errors)
        errors = torch.maximum(errors, clipped)
    loss = masked_mean(errors, mask, num_items["spans"])
    with torch.no_grad():
        metrics = {
            "value_loss": masked_mean(errors, mask),
            "value_clip_ratio": masked_mean(is_clipped.to(values.dtype), mask),
            "explained_variance": explained_variance(before, returns, mask),
        }
    return loss, metrics


def total(
    policy: tuple[torch.Tensor, Metrics],
    batch: Tensors,
    output: Tensors,
    entropies: torch.Tensor,
    mask: torch.Tensor,
    settings: ObjectiveSettings,
    num_items: Mapping[str, Number],
) -> ObjectiveOutput:
    """`policy loss + value_coef * value loss - entropy_coef * entropy`.

    Source: PPO (arXiv 1707.06347), equation 9.

    Args:
        policy, value (`tuple`): of `policy_term` and `value_term`.
        entropies (`torch.Tensor` of shape `(B, S)`): in nats.
        mask (`torch.BoolTensor` of shape `(B, S)`): entries that count.
        settings (`ObjectiveSettings`): coefficients.
        num_items (`Mapping[str, float | torch.Tensor]`): number of `"spans"`.
    """
    policy_loss, policy_metrics = policy
    value_loss, value_metrics = value_term(batch, output, mask, settings, num_items)
    entropy = masked_mean(entropies, mask, num_items["spans"])
    loss = policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy
    metrics = {**policy_metrics, "entropy": masked_mean(entropies.detach(), mask), **value_metrics}
    return ObjectiveOutput(loss, metrics)
