"""From a policy's output to the weights of a span: validation, cuts and renormalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    answer = answered(policy, state)
    answer.check(answer.is_good.tolist())
    return answer.output


@dataclass(frozen=True)
class Answer:
    """What a policy returned, whose values are not known to be valid yet.

    Attributes:
        output (`PolicyOutput`): see `ask`.
        is_good (`torch.BoolTensor` of shape `(B,)`): whether the weights of each row are valid.
        name (`str`): the policy's.
        given (`torch.FloatTensor` of shape `(B, M)`): the weights as they were returned.
    """

    output: PolicyOutput
    is_good: torch.Tensor
    name: str
    given: torch.Tensor

    def check(self, is_good: Sequence[float]) -> None:
        """Raises `PolicyError` if the weights of a row are not valid; `is_good` has the values of the attribute."""
        row = next((row for row, good in enumerate(is_good) if not good), None)
        if row is not None:
            raise PolicyError(
                f"the policy {self.name} returned {self.given[row].tolist()} for row {row}; weights must be finite, at "
                "least 0 and sum to 1. End the policy with a softmax, or divide by the sum"
            )


def answered(policy: Policy, state: PolicyState) -> Answer:
    """Like `ask`, but does not look at the values of the weights, so that the device need not be waited for.

    Args:
        policy (`Policy`), state (`PolicyState`): see `ask`.

    Raises:
        PolicyError: the weights have another shape or kind.
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
    shares = weights / total
    output = replace(answer, weights=shares) if isinstance(answer, PolicyOutput) else PolicyOutput(shares)
    return Answer(output, good.all(1), name, weights)


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
    if min_weight <= 0 and (max_active is None or max_active >= members):
        return weights
    order = weights.argsort(dim=1, descending=True, stable=True)  # stable: of equal weights the first ones are kept
    keep = torch.ones_like(weights, dtype=torch.bool)
    if min_weight > 0:
        keep &= weights >= min_weight
    if max_active is not None and max_active < members:
        keep &= torch.zeros_like(keep).scatter_(1, order[:, :max_active], True)
    keep.scatter_(1, order[:, :1], True)
    kept = weights * keep
    return torch.where(keep.all(), weights, kept / kept.sum(1, keepdim=True))
