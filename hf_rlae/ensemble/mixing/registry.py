"""The interface of a mixing and the registry of mixings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hf_rlae.registry import Registry


class Mixing(Protocol):
    """Mixes the members' distributions over one vocabulary.

    Both methods return an fp32 tensor of shape `(B, n, V)`: the mixture's log-probabilities plus `sum_k w_k log_z_k`.
    The shift gives the mixture the scale of the members' own logits, so that a repetition penalty, which scales raw
    logits, acts as on one model. `weights` has shape `(B, n, M)`. `log_z` has M tensors of shape `(B, n)`: the log of
    each member's sum of exponentials.
    """

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """Mixes M fp32 tensors of logits `(B, n, V)`, which may be overwritten if gradients are disabled."""

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """Mixes M fp32 tensors of probabilities `(B, n, V)`, which may be overwritten if gradients are disabled."""


mixings: Registry[Mixing] = Registry("mixing")


def shift(log_z: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """`sum_k w_k log Z_k`, of shape `(B, n)`; members without weight are left out, even if their `log Z` is -inf."""
    total = torch.zeros_like(log_z[0])
    for index, z in enumerate(log_z):
        weight = weights[..., index]
        total = total + weight * z.masked_fill(weight == 0, 0.0)  # 0 * -inf is NaN, in values and in gradients
    return total
