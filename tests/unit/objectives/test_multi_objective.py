"""Sums of normalised rewards, against a twin in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_rlae.errors import ConfigError, ObjectiveError
from hf_rlae.objectives import group_relative
from hf_rlae.objectives.multi_objective import normalized_sum

nan = torch.nan


def twin(rewards, weights, size, eps=1e-4):
    """The formula of TRL for `normalize_then_sum`, before it normalises over the batch; without NaN."""
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, size, len(weights))
    normalized = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + eps)
    return (normalized.reshape(-1, len(weights)) * np.asarray(weights)).sum(1)


@pytest.mark.parametrize("size", [2, 4, 12, None])
def test_equals_the_formula(size):
    rewards = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.01])
    weights = torch.tensor([1.0, 0.5, -2.0])
    expected = twin(rewards, weights, size or 12)
    np.testing.assert_allclose(normalized_sum(rewards, weights, size).numpy(), expected, atol=1e-4)


def test_the_scale_of_a_reward_does_not_matter():
    """Law: scaling and shifting one reward changes nothing, up to `eps`; in a plain sum it decides everything."""
    rewards = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    other = rewards * torch.tensor([1.0, 1000.0]) + torch.tensor([0.0, 7.0])
    weights = torch.ones(2)
    torch.testing.assert_close(
        normalized_sum(rewards, weights, 4), normalized_sum(other, weights, 4), atol=2e-3, rtol=0.0
    )
    plain, scaled = (group_relative((each @ weights), 4) for each in (rewards, other))
    assert (plain - scaled).abs().max() > 0.5


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        pytest.param([[1.0, nan], [0.0, nan]], [0.7071, -0.7071], id="a function that judged nothing"),
        pytest.param([[1.0, 5.0], [0.0, nan]], [0.7071, -0.7071], id="the only judged one of its group"),
        pytest.param([[nan, nan], [1.0, 5.0]], [nan, 0.0], id="a completion that nobody judged"),
        pytest.param([[3.0, 1.0], [3.0, 0.0]], [0.7071, -0.7071], id="no spread"),
        pytest.param([[1.0, 0.0], [0.0, 9.0]], [0.0, 0.0], id="opposite rewards"),
    ],
)
def test_rewards_that_say_nothing(rewards, expected):
    found = normalized_sum(torch.tensor(rewards), torch.ones(2), 2)
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0.0, equal_nan=True)


@pytest.mark.parametrize(
    ("rewards", "weights", "size", "error", "message"),
    [
        (torch.zeros(4, 2), torch.ones(3), 2, ObjectiveError, "weights has shape"),
        (torch.zeros(4), torch.ones(1), 2, ObjectiveError, "weights has shape"),
        (torch.zeros(4, 1), torch.ones(1), 3, ObjectiveError, "num_generations=3"),
        (torch.full((4, 1), torch.inf), torch.ones(1), 2, ObjectiveError, "finite"),
        (torch.zeros(4, 1), torch.ones(1), -1, ConfigError, "num_generations"),
    ],
)
def test_bad_arguments(rewards, weights, size, error, message):
    with pytest.raises(error, match=message):
        normalized_sum(rewards, weights, size)
