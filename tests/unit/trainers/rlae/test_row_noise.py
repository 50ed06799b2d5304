"""Random numbers per row."""

from __future__ import annotations

import math

import pytest
import torch

from hf_rlae.trainers.rlae.row_noise import RowSampler, row_uniforms, seed_of


def drawn(sampler: RowSampler, scores: torch.Tensor, columns: int) -> torch.Tensor:
    picked = sampler(torch.zeros(len(scores), columns, dtype=torch.long), scores)
    assert ((picked == 0).sum(1) == 1).all()
    assert ((picked == 0) | (picked == -torch.inf)).all()
    return picked.argmax(1)


def test_seeds_are_distinct_and_in_range():
    seeds = {seed_of(a, b, c) for a in range(3) for b in range(10) for c in range(10)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)


def test_a_rows_numbers_do_not_depend_on_the_others():
    together = row_uniforms([5, 6, 7], 4)
    assert together.shape == (3, 4)
    assert torch.equal(together[1:2], row_uniforms([6], 4))
    assert torch.equal(row_uniforms([6], 9)[:, :4], together[1:2])
    assert ((together >= 0) & (together < 1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_follow_the_distribution(dtype):
    """Chi-square over 8 tokens; 24.3 is its 99.9% point with 7 degrees of freedom."""
    scores = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, -0.5]], dtype=dtype)
    rows = 4000
    sampler = RowSampler(row_uniforms([seed_of(row) for row in range(rows)], 3), 2)
    for column in range(3):
        counts = torch.bincount(drawn(sampler, scores.expand(rows, -1), 2 + column), minlength=8)
        expected = scores[0].double().softmax(-1) * rows
        assert float(((counts - expected) ** 2 / expected).sum()) < 24.3


def test_a_token_of_probability_0_is_never_drawn():
    """Numbers at every boundary: 0, the cumulative probabilities, and the largest number below 1."""
    scores = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf, -1e30])
    edges = torch.tensor([0.0, 0.5, 1 - 2**-53, 0.5 - 2**-53, 1.0], dtype=torch.float64)
    tokens = drawn(RowSampler(edges[:, None], 0), scores.expand(len(edges), -1), 0)
    assert tokens.tolist() == [1, 3, 3, 1, 3]


def test_steps_count_from_the_prompt():
    scores = torch.zeros(1, 4)
    sampler = RowSampler(torch.tensor([[0.1, 0.9]], dtype=torch.float64), 3)
    assert drawn(sampler, scores, 3).item() == 0
    assert drawn(sampler, scores, 4).item() == 3
