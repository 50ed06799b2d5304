"""Random numbers per row, so that a rollout is the same in any batch and on any number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


def seed_of(*parts: int) -> int:
    """One seed from several numbers, from 0 to 2**63 - 1; different numbers give unrelated seeds.

    Example:

    >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
    (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_uniforms(seeds: Sequence[int], length: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), `length` from each row's own seed.

    Args:
        seeds (`Sequence[int]`): one per row, B.
        length (`int`): T.

    Returns:
        `torch.DoubleTensor` of shape `(B, T)`.
    """
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


class DrawNumbers:
    """Uniform numbers for draws of members, for every token of a row from the row's own seed; see `MemberDraws`.

    Args:
        seeds (`Sequence[int]`): one per row, or a single one that all rows share.
        length (`int`): T, the largest number of tokens.
    """

    def __init__(self, seeds: Sequence[int], length: int) -> None:
        self.seeds = seeds
        self.length = length
        self._tables: list[torch.Tensor] = []

    def __call__(self, token: int, times: int) -> torch.Tensor:
        """Numbers of shape `(B,)` for a token for which members were drawn `times` times before."""
        while len(self._tables) <= times:
            seeds = [seed_of(seed, 2, len(self._tables)) for seed in self.seeds]
            self._tables.append(row_uniforms(seeds, self.length))
        return self._tables[times][:, token]


class RowSampler(LogitsProcessor):
    """Samples a token for every row from the row's own numbers, and rules out all other tokens.

    The token is the first one whose cumulative probability exceeds the number of the row and step. Use it as the last
    processor of a greedy `generate`, after temperature and the like.

    Source: inverse transform sampling.

    Args:
        uniforms (`torch.DoubleTensor` of shape `(B, T)`): see `row_uniforms`.
        prompt_columns (`int`): number of columns of the prompt.
    """

    draws_tokens = True

    def __init__(self, uniforms: torch.Tensor, prompt_columns: int) -> None:
        self.uniforms = uniforms
        self.prompt_columns = prompt_columns

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores of shape `(B, V)`: 0 for the sampled token (NaN if none is left), minus infinity for all others."""
        probs = scores.double().softmax(-1)
        cumulated = probs.cumsum(-1)
        number = self.uniforms[:, input_ids.shape[1] - self.prompt_columns, None].to(scores.device)
        total = cumulated[:, -1:]
        # rounding may make the product equal to the total, which no token exceeds
        passed = torch.minimum(number * total, torch.nextafter(total, torch.zeros_like(total)))
        token = torch.searchsorted(cumulated, passed, right=True).clamp(max=scores.shape[1] - 1)  # scores may be NaN
        drawn = torch.full_like(scores, -torch.inf)
        drawn.scatter_(1, token, 0.0 * total.to(scores.dtype))  # NaN if no token is left, for `EndWatch`
        return drawn  # type: ignore[return-value]
