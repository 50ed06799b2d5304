"""Random numbers of rows, computed at once from one seed per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def uniforms(seeds: Sequence[int], numbers: int, first: int = 0) -> torch.Tensor:
    """Uniform numbers above 0 and below 1; those of a row depend on its seed only.

    Source: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).

    Args:
        seeds (`Sequence[int]`): one per row, at least 0 and below 2**63.
        numbers (`int`): N, how many for each row.
        first (`int`, defaults to 0): how many numbers of each row to leave out.

    Returns:
        `torch.DoubleTensor` of shape `(B, N)`, on the CPU.

    Example:

    >>> bool((uniforms([1, 2, 1], 2)[0] == uniforms([1], 2)[0]).all())
    True
    """
    steps = np.arange(first + 1, first + numbers + 1, dtype=np.uint64) * _STEP  # unsigned integers wrap around
    mixed = np.array(seeds, dtype=np.uint64).reshape(-1, 1) + steps
    for shift, factor in zip(_SHIFTS[:2], _MIX, strict=True):
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed ^= mixed >> _SHIFTS[2]
    return torch.from_numpy(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def new_seeds(rows: int) -> list[int]:
    """Seeds from torch's global generator."""
    found: list[int] = torch.randint(2**63 - 1, (rows,)).tolist()
    return found
