"""Constraints on rewards: their arguments, multipliers and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from trl import TrlParser

from hf_rlae.errors import ConfigError
from hf_rlae.trainers import CoryConfig, RLAEConfig
from hf_rlae.trainers.constraints import ConstraintArguments, RewardConstraints


@dataclass
class Nothing:
    def __post_init__(self) -> None:
        pass


@dataclass
class Arguments(ConstraintArguments, Nothing):
    pass


def constraints(least, names=("right", "short"), weights=None, **options):
    return RewardConstraints(Arguments(reward_constraints=least, **options), names, weights)


def test_without_constraints_weights_are_those_that_were_given():
    made = constraints(None, weights=[0.3, 2.0])
    assert torch.equal(made.weights, torch.tensor([0.3, 2.0]))
    assert made.weights is made.main_weights
    assert made.update(torch.zeros(2, 2)) == {}
    assert torch.equal(constraints({}).weights, torch.ones(2))


@pytest.mark.parametrize(
    ("start", "mean", "expected"),
    [
        pytest.param(0.0, 0.3, 0.5 * (0.8 - 0.3), id="too low: it grows from 0"),
        pytest.param(0.4, 0.3, 0.4 + 0.25, id="too low: it grows"),
        pytest.param(0.4, 1.0, 0.4 - 0.1, id="higher than needed: it falls"),
        pytest.param(0.05, 1.0, 0.0, id="never below 0"),
        pytest.param(1.9, -3.0, 2.0, id="never above the maximum"),
        pytest.param(0.4, 0.8, 0.4, id="met exactly: it stays"),
        pytest.param(0.4, math.nan, 0.4, id="nothing judged: it stays"),
    ],
)
def test_dual_ascent(start, mean, expected):
    made = constraints({"short": 0.8}, multiplier_learning_rate=0.5, max_multiplier=2.0)
    made.load({"short": start})
    found = made.update(torch.tensor([[5.0, mean], [9.0, mean], [0.0, math.nan]]))
    assert found == {"constraints/short/multiplier": pytest.approx(expected)}
    assert made.multipliers["short"] == pytest.approx(expected)


def test_weights_have_the_scale_of_one_reward():
    made = constraints({"short": 0.8, "kind": 0.0}, ("right", "short", "kind"))
    assert made.weights.tolist() == [1.0, 0.0, 0.0]
    made.load({"short": 1.5, "kind": 0.5, "gone": 3.0})
    assert made.weights.tolist() == pytest.approx([1 / 3, 0.5, 0.5 / 3])
    assert made.main_weights.tolist() == [1.0, 0.0, 0.0]
    made.reset()
    assert made.multipliers == {"short": 0.0, "kind": 0.0}


@pytest.mark.parametrize(("least", "p", "multiplier"), [(0.6, 0.4, 1.2), (-0.5, 1.0, 0.0)])
def test_the_optimum_under_a_constraint(least, p, multiplier):
    """Gradient ascent on `p`, with the main reward `-(1 - p)^2` and the constrained one `1 - p`, finds the solution and
    the multiplier of the Karush-Kuhn-Tucker conditions; a constraint that is met anyway has none."""
    made = constraints({"short": least}, multiplier_learning_rate=0.5)
    found = torch.zeros((), requires_grad=True)
    for _ in range(200):
        rewards = torch.stack([-((1 - found) ** 2), 1 - found])
        made.update(rewards.detach()[None])
        (gradient,) = torch.autograd.grad(rewards @ made.weights, found)
        found = (found + 0.3 * gradient).detach().requires_grad_()
    assert found.item() == pytest.approx(p, abs=1e-3)
    assert made.multipliers["short"] == pytest.approx(multiplier, abs=1e-2)


@pytest.mark.parametrize(
    ("least", "names", "weights", "message"),
    [
        ({"shrot": 0.5}, ("right", "short"), None, "'shrot'.* did you mean 'short'"),
        ({"short": 0.5}, ("right", "short", "short"), None, "several functions have it"),
        ({"short": 0.5}, ("short",), None, "nothing to maximise"),
        ({"short": 0.5}, ("right", "short"), [1.0, 0.5], "has the weight 0.5.*give 0 for it"),
        ({"short": 0.5}, ("right", "short"), [1.0], "reward_weights has 1 entries for 2"),
    ],
)
def test_constraints_that_do_not_fit_the_rewards(least, names, weights, message):
    with pytest.raises(ConfigError, match=message):
        constraints(least, names, weights)
    assert constraints({"short": 0.5}, weights=[2.0, 0.0]).main_weights.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("make", [RLAEConfig, CoryConfig])
def test_fields_of_configurations(make):
    config = make("out", report_to="none", use_cpu=True, reward_constraints='{"short": 1}')
    assert config.reward_constraints == {"short": 1}
    assert make("out", report_to="none", use_cpu=True).reward_constraints is None
    given = ["--output_dir", "out", "--report_to", "none", "--use_cpu", "true", "--reward_constraints", '{"short": 1}']
    (config,) = TrlParser(make).parse_args_and_config(given)
    assert config.reward_constraints == {"short": 1}
    for options, message in (
        ({"reward_constraints": {"short": "much"}}, "reward_constraints=.*least mean"),
        ({"reward_constraints": {"short": math.nan}}, "reward_constraints="),
        ({"reward_constraints": ["short"]}, "reward_constraints="),
        ({"reward_constraints": "short"}, "reward_constraints='short'"),
        ({"multiplier_learning_rate": 0}, "multiplier_learning_rate=0"),
        ({"max_multiplier": -1.0}, "max_multiplier=-1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make("out", report_to="none", use_cpu=True, **options)
