"""The search for the best fixed weights."""

from __future__ import annotations

import math

import pytest

from hf_rlae.baselines import best_fixed_weights, simplex_grid
from hf_rlae.errors import ConfigError


@pytest.mark.parametrize(("members", "resolution"), [(1, 3), (2, 10), (3, 5), (4, 4)])
def test_the_grid_holds_every_weight_once(members, resolution):
    grid = simplex_grid(members, resolution)
    assert len(set(grid)) == len(grid) == math.comb(resolution + members - 1, members - 1)
    assert all(math.isclose(sum(weights), 1.0) and min(weights) >= 0 for weights in grid)
    corners = [tuple(float(a == b) for b in range(members)) for a in range(members)]
    assert set(corners) <= set(grid)


def test_the_best_is_found_and_everything_is_reported():
    found = best_fixed_weights(lambda w: -((w[0] - 0.6) ** 2) - (w[1] - 0.4) ** 2, 3, 5)
    assert found.weights == (0.6, 0.4, 0.0)
    assert len(found.tried) == 21
    assert found.score == max(score for _, score in found.tried)


def test_ties_go_to_the_most_equal():
    assert best_fixed_weights(lambda weights: 0.5, 2, 4).weights == (0.5, 0.5)
    assert best_fixed_weights(lambda weights: float(weights[0] > 0), 3, 3).weights == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize(("members", "resolution"), [(0, 3), (2, 0)])
def test_empty_grids_are_refused(members, resolution):
    with pytest.raises(ConfigError, match="at least 1"):
        simplex_grid(members, resolution)
