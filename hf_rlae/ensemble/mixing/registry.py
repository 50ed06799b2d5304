"""The interface of a mixing and the registry of mixings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hf_rlae.registry import Registry


class Mixing(Protocol):
    """Mixes the members' log-probabilities over one vocabulary.

    Called with `scores` (a list of M fp32 tensors of shape `(B, n, V)`, unnormalised log-probabilities),
    `log_z` (a list of M tensors of shape `(B, n)`: the log of each one's total) and `weights` of shape
    `(B, n, M)`, it returns a fp32 tensor of shape `(B, n, V)`: the mixture's log-probabilities plus
    `sum_k w_k log_z_k`. Tensors in `scores` may be overwritten.
    """

    def __call__(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor: ...


mixings: Registry[Mixing] = Registry("mixing")


def shift(log_z: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """`sum_k w_k log Z_k`, of shape `(B, n)`.

    A repetition penalty scales raw logits, so a mixture is put where the members' own logits are.
    """
    total = torch.zeros_like(log_z[0])
    for index, z in enumerate(log_z):
        total = total + torch.where(weights[..., index] > 0, weights[..., index] * z, 0.0)
    return total
