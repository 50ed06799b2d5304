"""The critic's unit: running mean and deviation of the rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hf_rlae.trainers.rlae.value_scale import ValueScale


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6], ids=["small", "one", "large"])
def test_mean_and_deviation_are_those_of_all_rewards_so_far(size):
    rewards = np.random.default_rng(0).normal(3.0, 2.0, 60) * size
    scale = ValueScale()
    for part in np.split(rewards, [1, 20, 45]):
        scale.add(torch.tensor([*part, np.nan], dtype=torch.float64))
    assert scale.count == 60
    assert scale.mean == pytest.approx(rewards.mean())
    assert scale.deviation == pytest.approx(rewards.std())
    values = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(scale.normalised(scale.in_rewards(values)), values, atol=1e-5, rtol=0)
    assert scale.in_rewards(torch.zeros(1)).item() == pytest.approx(rewards.mean(), rel=1e-6)


@pytest.mark.parametrize(
    "given", [[], [0.0, 0.0], [0.1] * 3, [1e6, 1e6 + 0.06]], ids=["none", "0", "equal", "rounding"]
)
def test_the_deviation_of_constant_rewards_is_1(given):
    scale = ValueScale()
    scale.add(torch.tensor(given))
    assert scale.deviation == 1.0


def test_it_is_restored_exactly_from_json():
    scale = ValueScale()
    scale.add(torch.rand(7))
    assert ValueScale(**json.loads(json.dumps(scale.state()))) == scale
