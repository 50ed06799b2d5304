"""From a policy's output to the weights of a span: validation, cuts and renormalisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hf_rlae.errors import PolicyError
from hf_rlae.policies.protocol import Policy
from hf_rlae.policies.state import PolicyOutput, PolicyState

SUM_TOLERANCE = 1e-3
COARSE_SUM_TOLERANCE = 2e-2  # a softmax in bfloat16 is off by some of its steps of 2^-8
"""How far the sum of a policy's weights may be from 1; weights within the tolerance are renormalised."""


def ask(policy: Policy, state: PolicyState) -> PolicyOutput:
    """Calls a policy and validates its output.

    Args:
        policy (`Policy`): returns weights, or a `PolicyOutput`.
        state (`PolicyState`): the rows at a span's first token.

    Returns:
        `PolicyOutput`: with fp32 weights of shape `(B, M)` whose rows sum to 1.

    Raises:
        PolicyError: the weights have another shape, are negative or not finite, or do not sum to 1.
    """
    answer: Any = policy(state)
    weights: Any = answer.weights if isinstance(answer, PolicyOutput) else answer
    name = type(policy).__name__
    expected = (state.batch_size, state.num_members)
    if not isinstance(weights, torch.Tensor) or tuple(weights.shape) != expected:
        given = tuple(weights.shape) if isinstance(weights, torch.Tensor) else type(weights).__name__
        raise PolicyError(
            f"the policy {name} must return weights of shape (rows, members) = {expected}, got {given}; return one row "
            "of weights per row of the batch"
        )
    has_values = weights.layout == torch.strided and weights.device.type != "meta"
    if weights.is_complex() or weights.dtype == torch.bool or not has_values:
        raise PolicyError(
            f"the policy {name} returned weights of dtype {weights.dtype} and layout {weights.layout} on "
            f"{weights.device}; return real numbers in a dense tensor"
        )
    tolerance = SUM_TOLERANCE if weights.dtype in (torch.float32, torch.float64) else COARSE_SUM_TOLERANCE
    weights = weights.to(device=state.device, dtype=torch.float32)
    total = weights.sum(1, keepdim=True)
    good = torch.isfinite(weights) & (weights >= 0) & ((total - 1).abs() <= tolerance)
    if not bool(good.all()):
        row = int((~good.all(1)).nonzero()[0])
        raise PolicyError(
            f"the policy {name} returned {weights[row].tolist()} for row {row}; weights must be finite, at "
            "least 0 and sum to 1. End the policy with a softmax, or divide by the sum"
        )
    weights = weights / total
    return replace(answer, weights=weights) if isinstance(answer, PolicyOutput) else PolicyOutput(weights)


def rescaled(weights: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Weights times a factor per member, renormalised; the weights themselves without factors.

    Args:
        weights (`torch.Tensor` of shape `(..., M)`): rows sum to 1.
        scale (`torch.Tensor` of shape `(M,)`, *optional*): greater than 0.

    Example:

    >>> rescaled(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1.0, 3.0]))
    tensor([[0.2500, 0.7500],
            [1.0000, 0.0000]])
    """
    if scale is None:
        return weights
    scaled = weights * scale.to(weights)
    return scaled / scaled.sum(-1, keepdim=True)


def cut(weights: torch.Tensor, min_weight: float, max_active: int | None) -> torch.Tensor:
    """Sets small weights to exactly 0, so that these members do not run, and renormalises the others.

    The largest weight of a row is always kept.

    Args:
        weights (`torch.Tensor` of shape `(B, M)`): rows sum to 1.
        min_weight (`float`): weights below it become 0.
        max_active (`int`, *optional*): maximum number of members that keep their weight.

    Returns:
        `torch.Tensor` of shape `(B, M)`: rows sum to 1; unchanged if nothing is cut.

    Example:

    >>> cut(torch.tensor([[0.62, 0.30, 0.08]]), 0.1, None)
    tensor([[0.6739, 0.3261, 0.0000]])
    """
    members = weights.shape[1]
    order = weights.argsort(dim=1, descending=True, stable=True)  # stable: of equal weights the first ones are kept
    keep = torch.ones_like(weights, dtype=torch.bool)
    if min_weight > 0:
        keep &= weights >= min_weight
    if max_active is not None and max_active < members:
        keep &= torch.zeros_like(keep).scatter_(1, order[:, :max_active], True)
    keep.scatter_(1, order[:, :1], True)
    if bool(keep.all()):
        return weights
    kept = weights * keep
    return kept / kept.sum(1, keepdim=True)
