"""Advantages: closed forms, a loop over what counts, and masks."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.objectives import ObjectiveError, gae, group_relative, terminal_rewards, whiten

SHAPES = {"rows": st.integers(1, 4), "spans": st.integers(1, 6), "seed": st.integers(0, 10_000)}


def table(rows, spans, seed):
    """Rewards, values and a mask with holes anywhere, with rubbish where nothing counts."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, spans, generator=draw) < 0.7
    rewards = torch.randn(rows, spans, generator=draw, dtype=torch.float64)
    values = torch.randn(rows, spans, generator=draw, dtype=torch.float64)
    return rewards.masked_fill(~mask, torch.nan), values.masked_fill(~mask, torch.inf), mask


def by_hand(rewards, values, gamma, lam):
    """The sum of discounted errors of one step, of one row of spans that all count."""
    errors = [
        reward + gamma * (values[i + 1] if i + 1 < len(values) else 0.0) - values[i] for i, reward in enumerate(rewards)
    ]
    return [sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, len(errors))) for i in range(len(errors))]


@given(**SHAPES, gamma=st.floats(0, 1), lam=st.floats(0, 1))
@settings(max_examples=40)
def test_gae_is_its_sum(rows, spans, seed, gamma, lam):
    """Row by row, as if what does not count were not there."""
    rewards, values, mask = table(rows, spans, seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(rows):
        keep = mask[row]
        expected = by_hand(rewards[row][keep].tolist(), values[row][keep].tolist(), gamma, lam)
        assert advantages[row][keep].tolist() == pytest.approx(expected, abs=1e-9)
        assert returns[row][keep].tolist() == pytest.approx((advantages[row] + values[row])[keep].tolist())
        assert advantages[row][~keep].tolist() == returns[row][~keep].tolist() == [0.0] * int((~keep).sum())


@given(**SHAPES, gamma=st.floats(0, 1))
@settings(max_examples=25)
def test_gae_of_lambda_one_is_monte_carlo(rows, spans, seed, gamma):
    """Returns are discounted sums of rewards, whatever the critic says."""
    rewards, values, _ = table(rows, spans, seed)
    rewards, values = rewards.nan_to_num(), values.nan_to_num(posinf=3.0)
    advantages, returns = gae(rewards, values, torch.ones(rows, spans), gamma, 1.0)
    discounts = gamma ** torch.arange(spans, dtype=torch.float64)
    for span in range(spans):
        expected = (rewards[:, span:] * discounts[: spans - span]).sum(1)
        torch.testing.assert_close(returns[:, span], expected)
        torch.testing.assert_close(advantages[:, span], expected - values[:, span])


def test_gae_of_lambda_zero_is_the_error_of_one_step():
    rewards, values = torch.randn(2, 3, 5).unbind()
    advantages, _ = gae(rewards, values, torch.ones(3, 5), 0.9, 0.0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    torch.testing.assert_close(advantages, rewards + 0.9 * following - values)


def test_gae_without_discount_hands_the_reward_to_every_span():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    rewards = terminal_rewards(torch.tensor([1.0, -2.0, 5.0]), mask)
    assert rewards.tolist() == [[0, 0, 1.0], [0, -2.0, 0], [0, 0, 0]]
    _, returns = gae(rewards, torch.randn(3, 3), mask, 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[1.0] * 3, [-2.0, -2.0, 0], [0.0] * 3]))


def test_the_last_span_is_paid_wherever_padding_is():
    mask = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert terminal_rewards(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0, 0, 1.0], [0, 2.0, 0], [0, 0, 3.0]]


def test_rewards_that_are_not_finite_are_not_hidden():
    mask = torch.tensor([[1, 1], [1, 1]])
    advantages, _ = gae(terminal_rewards(torch.tensor([math.nan, 1.0]), mask), torch.zeros(2, 2), mask)
    assert advantages.isnan().tolist() == [[True, True], [False, False]]
    judged = torch.tensor([[0, 0], [1, 1]])
    advantages, _ = gae(terminal_rewards(torch.tensor([math.nan, 1.0]), judged), torch.zeros(2, 2), judged)
    assert not bool(advantages.isnan().any())


@given(
    st.lists(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["group", "batch", "none"]),
)
@settings(max_examples=60)
def test_group_relative_by_hand(groups, scale):
    """The reward less the mean of the judged ones of the group, over the standard deviation that was asked for."""
    rewards = torch.tensor([math.nan if r is None else r for group in groups for r in group], dtype=torch.float64)
    found = group_relative(rewards, 3, scale).view(-1, 3).tolist()
    everything = [r for group in groups for r in group if r is not None]
    for group, row in zip(groups, found, strict=True):
        judged = [r for r in group if r is not None]
        pool = {"group": judged, "batch": everything, "none": []}[scale]
        divisor = 1.0 if scale == "none" else (statistics.stdev(pool) if len(pool) > 1 else 0.0) + 1e-4
        for reward, advantage in zip(group, row, strict=True):
            expected = 0.0 if reward is None else (reward - statistics.fmean(judged)) / divisor
            assert advantage == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_group_relative_is_relative():
    """Another prompt's difficulty changes nothing; neither does a reward's scale, nearly."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    found = group_relative(rewards, 4)
    assert found.view(2, 4).sum(1).tolist() == pytest.approx([0.0, 0.0])
    torch.testing.assert_close(group_relative(rewards + torch.tensor([0.0] * 4 + [7.0] * 4), 4), found)
    torch.testing.assert_close(group_relative(rewards * 10, 4), found, rtol=1e-3, atol=0)
    assert group_relative(torch.ones(4), 4).tolist() == [0.0] * 4
    assert group_relative(torch.tensor([0.3, 0.9]), 1, "none").tolist() == [0.0, 0.0]


def test_whiten():
    advantages = torch.randn(5, 7, dtype=torch.float64)
    mask = torch.rand(5, 7) < 0.6
    found = whiten(advantages.masked_fill(~mask, torch.nan), mask)
    kept = found[mask]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-9)
    assert float(kept.std()) == pytest.approx(1, abs=1e-6)
    assert found[~mask].tolist() == [0.0] * int((~mask).sum())
    assert whiten(torch.tensor([3.0]), torch.tensor([1])).tolist() == [0.0]
    assert whiten(torch.tensor([3.0]), torch.tensor([0])).tolist() == [0.0]


ZEROS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gae(ZEROS, torch.zeros(2, 4), ZEROS), ObjectiveError, r"values has shape \(2, 4\).*rewards has 3"),
        (lambda: gae(ZEROS, ZEROS, torch.zeros(2)), ObjectiveError, r"mask has shape \(2,\).*\(B, S\)"),
        (lambda: gae(ZEROS, None, ZEROS), ObjectiveError, "values is missing"),
        (lambda: gae(ZEROS, [0.0], ZEROS), ObjectiveError, "values is a list"),
        (lambda: gae(ZEROS, ZEROS, ZEROS, gamma=1.1), ConfigError, "gamma=1.1"),
        (lambda: gae(ZEROS, ZEROS, ZEROS, lam=math.nan), ConfigError, "lam=nan"),
        (lambda: terminal_rewards(torch.zeros(3), ZEROS), ObjectiveError, "span_mask has shape.*rewards has 3"),
        (lambda: group_relative(torch.zeros(6), 4), ObjectiveError, "6 entries.*num_generations=4"),
        (lambda: group_relative(ZEROS, 3), ObjectiveError, r"rewards has shape \(2, 3\)"),
        (lambda: group_relative(torch.tensor([0.0, math.inf]), 2), ObjectiveError, r"rewards\[1\] is inf"),
        (lambda: group_relative(torch.zeros(6), 3, "groups"), ConfigError, "did you mean 'group'"),
        (lambda: group_relative(torch.zeros(6), 0), ConfigError, "num_generations=0"),
        (lambda: group_relative(torch.zeros(6), 2, eps=0.0), ConfigError, "eps=0.0"),
        (lambda: whiten(ZEROS, torch.zeros(3)), ObjectiveError, r"mask has shape \(3,\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
