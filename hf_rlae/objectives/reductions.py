"""Means over the entries that count. The others may hold anything, even NaN, and have the gradient 0."""

from __future__ import annotations

import torch

Number = float | torch.Tensor
ROUNDING = 1e-6
"""Returns that differ by less than this share of their size are equal: they are sums in fp32."""


def masked_mean(values: torch.Tensor, mask: torch.Tensor, num_items: Number | None = None) -> torch.Tensor:
    """The sum over entries that count, divided by their number; 0 if there are none.

    Args:
        values (`torch.Tensor` of any shape).
        mask (`torch.BoolTensor` of the same shape).
        num_items (`float` or 0-d `torch.Tensor`, *optional*): divide by this number instead, or by 1 if it is smaller.

    Returns:
        0-d `torch.Tensor`.

    Example:

    >>> masked_mean(torch.tensor([2.0, 4.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(3.)
    """
    return torch.where(mask, values, 0).sum() / _at_least_one(mask.sum() if num_items is None else num_items)


def mean_of_row_means(values: torch.Tensor, mask: torch.Tensor, num_rows: Number | None = None) -> torch.Tensor:
    """The mean over each row's entries that count, summed and divided by the number of rows that have any.

    Args:
        values (`torch.Tensor` of shape `(B, N)`).
        mask (`torch.BoolTensor` of shape `(B, N)`).
        num_rows (`float` or 0-d `torch.Tensor`, *optional*): divide by this number instead, or by 1 if it is smaller.

    Returns:
        0-d `torch.Tensor`.

    Example:

    >>> mean_of_row_means(torch.tensor([[2.0, 4.0], [9.0, 0.0]]), torch.tensor([[True, True], [True, False]]))
    tensor(6.)
    """
    means = torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)
    return means.sum() / _at_least_one(mask.any(1).sum() if num_rows is None else num_rows)


def masked_max(values: torch.Tensor, mask: torch.Tensor, default: float) -> torch.Tensor:
    """The largest entry that counts, `default` if there is none.

    Example:

    >>> masked_max(torch.tensor([2.0, 4.0]), torch.tensor([True, False]), default=1.0)
    tensor(2.)
    """
    kept = values[mask]
    return kept.max() if len(kept) else values.new_tensor(default)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`1 - Var(returns - values) / Var(returns)` over entries that count.

    1 for a perfect critic, 0 for a constant one, negative for a worse one. NaN if the returns do not vary by more than
    rounding: leave it out of averages.

    Args:
        values, returns (`torch.Tensor` of shape `(B, S)`).
        mask (`torch.BoolTensor` of shape `(B, S)`).

    Returns:
        0-d `torch.Tensor`.

    Example:

    >>> explained_variance(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 4.0]), torch.tensor([True, True]))
    tensor(0.7500)
    """
    kept_values, kept_returns = values[mask], returns[mask]
    if not len(kept_returns):
        return values.new_tensor(torch.nan)
    total = kept_returns.var(correction=0)
    rest = (kept_returns - kept_values).var(correction=0)
    size = torch.maximum(kept_returns.abs().amax(), kept_values.abs().amax())
    return torch.where(total > (ROUNDING * size) ** 2, 1 - rest / total, torch.nan)


def _at_least_one(count: Number) -> Number:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
