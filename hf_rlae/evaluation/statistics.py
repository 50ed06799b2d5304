"""Intervals and p-values for methods that answer the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_MAX_DRAWS = 2**22
"""Draws of questions that are in memory together."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value (`float`): on the questions themselves.
        low, high (`float`): the 95% percentile interval of the bootstrap.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """What a method gains on another one, on the same questions.

    Attributes:
        p_value (`float`): two-sided, for no difference.
        test (`str`): `"sign test"` for right and wrong answers, else `"bootstrap"`.
    """

    p_value: float
    test: str


def estimate(scores: Sequence[float], sizes: Sequence[float], seed: int = 0) -> Estimate:
    """The mean score with its interval: `sum(scores) / sum(sizes)` over questions drawn with replacement.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals).

    Args:
        scores (`Sequence[float]`): N numbers, such as 1 for a right answer and 0 for a wrong one, or bits of a text.
        sizes (`Sequence[float]`): N numbers, what scores are a share of: 1 for answers, bytes for bits.
        seed (`int`, defaults to 0): of the bootstrap.

    Example:

    >>> estimate([1.0, 0.0, 1.0, 1.0], [1, 1, 1, 1]).value
    0.75
    """
    tops, bottoms = np.asarray(scores, float), np.asarray(sizes, float)
    if not len(tops):
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(float(tops.sum() / bottoms.sum()), *_interval(_resampled(tops, bottoms, seed)))


def difference(scores: Sequence[float], others: Sequence[float], sizes: Sequence[float], seed: int = 0) -> Difference:
    """The difference of two mean scores, with a paired interval and a p-value.

    Where all scores are 0 or 1, the p-value is that of the exact sign test on the questions that one method alone gets
    right (McNemar's exact test). Otherwise it is that of the paired bootstrap, twice the share of the draws on the less
    likely side of 0, and never below `2 / 2**N`, what N questions can show at most.

    Args:
        scores, others (`Sequence[float]`): N numbers each, of the same questions in the same order.
        sizes (`Sequence[float]`), seed (`int`): see `estimate`.

    Example:

    >>> found = difference([1.0] * 9 + [0.0], [0.0] * 10, [1] * 10)
    >>> found.value, found.p_value, found.test
    (0.9, 0.00390625, 'sign test')
    """
    gains, bottoms = np.asarray(scores, float) - np.asarray(others, float), np.asarray(sizes, float)
    if not len(gains):
        return Difference(math.nan, math.nan, math.nan, math.nan, "none")
    draws = _resampled(gains, bottoms, seed)
    value, interval = float(gains.sum() / bottoms.sum()), _interval(draws)
    if set(scores) | set(others) <= {0.0, 1.0}:
        return Difference(value, *interval, sign_test(int((gains > 0).sum()), int((gains < 0).sum())), "sign test")
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p_value = min(1.0, max(2 * (side + 1) / (len(draws) + 1), 2 * 0.5 ** len(gains)))
    return Difference(value, *interval, p_value, "bootstrap")


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of a fair coin that fell on one side `wins` times and on the other `losses` times.

    Example:

    >>> sign_test(8, 0), sign_test(5, 5), sign_test(0, 0)
    (0.0078125, 1.0, 1.0)
    """
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def _resampled(tops: np.ndarray, bottoms: np.ndarray, seed: int) -> np.ndarray:
    """The statistic of every draw of questions; equal seeds draw the same questions for all methods."""
    rng, count, found = np.random.default_rng(seed), len(tops), []
    part = max(1, _MAX_DRAWS // count)
    for start in range(0, RESAMPLES, part):
        chosen = rng.integers(count, size=(min(part, RESAMPLES - start), count))
        found.append(tops[chosen].sum(1) / bottoms[chosen].sum(1))
    return np.concatenate(found)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(draws).all():
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    return float(np.quantile(draws, tail)), float(np.quantile(draws, 1 - tail))
