"""Intervals and p-values of evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_rlae.evaluation.statistics import difference, estimate, sign_test


@pytest.mark.parametrize(
    ("wins", "losses", "expected", "why"),
    [
        (0, 0, 1.0, "no question tells them apart"),
        (1, 0, 1.0, "one question shows nothing: 2 / 2"),
        (5, 1, 2 * (1 + 6) / 64, "the tail of 6 coins with at most one of them"),
        (1, 5, 2 * (1 + 6) / 64, "two-sided"),
        (10, 0, 2 / 1024, "all ten on one side"),
        (4, 4, 1.0, "at most 1, though both tails have the middle"),
    ],
)
def test_sign_test(wins, losses, expected, why):
    assert sign_test(wins, losses) == pytest.approx(expected), why


def test_an_interval_covers_the_truth_in_about_95_of_100_samples():
    rng = np.random.default_rng(1)
    covered = 0
    for sample in range(200):
        found = estimate(rng.random(60) < 0.7, [1] * 60, seed=sample)
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_scores_are_shares_of_sizes():
    """Bits per byte: all bits over all bytes, not the mean of the texts' own."""
    found = estimate([10.0, 90.0], [10, 30])
    assert found.value == 2.5
    assert (found.low, found.high) == (1.0, 3.0)


def test_a_difference_is_paired():
    """A small gain on every question excludes 0, though the scores differ much more between questions."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 50)
    found = difference(list(base + 0.1 + rng.normal(0, 0.05, 50)), list(base), [1] * 50)
    assert 0 < found.low < found.value < found.high
    assert found.p_value < 0.01
    assert found.test == "bootstrap"


def test_equal_methods_do_not_differ():
    for scores in ([1.0, 0.0, 1.0], [0.2, 0.7, 0.4]):
        found = difference(scores, scores, [1] * 3)
        assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_p_value_is_not_below_what_the_questions_can_show():
    assert difference([1.5, 2.5, 3.5], [1.0, 2.0, 3.0], [1] * 3).p_value == 0.25


def test_no_questions_give_no_number():
    assert math.isnan(estimate([], []).value)
    assert math.isnan(difference([], [], []).p_value)


def test_equal_seeds_give_equal_intervals():
    scores = list(np.random.default_rng(0).random(30))
    assert estimate(scores, [1] * 30, seed=3) == estimate(scores, [1] * 30, seed=3)
    assert estimate(scores, [1] * 30, seed=3) != estimate(scores, [1] * 30, seed=4)
