"""Intervals for what is compared on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def paired_bootstrap(
    columns: Sequence[np.ndarray],
    statistic: Callable[..., float],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval of a statistic of several methods that answered the same questions.

    Questions are drawn with replacement, the same ones for all methods; where a method was trained with several seeds,
    seeds are drawn with replacement, too.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals).

    Args:
        columns (`Sequence[np.ndarray]`): one a method, of shape `(seeds, questions)`: 1 for a right answer, 0 for a
            wrong one.
        statistic (callable): takes the methods' mean accuracies and returns a number.
        resamples (`int`), level (`float`), seed (`int`): of the bootstrap.

    Returns:
        `(low, high)`.

    Example:

    >>> right, wrong = np.ones((1, 50)), np.zeros((1, 50))
    >>> paired_bootstrap([right, wrong], lambda a, b: a - b)
    (1.0, 1.0)
    """
    rng = np.random.default_rng(seed)
    questions = columns[0].shape[1]
    found = []
    for _ in range(resamples):
        chosen = rng.integers(questions, size=questions)
        means = [float(column[rng.integers(len(column), size=len(column))][:, chosen].mean()) for column in columns]
        found.append(statistic(*means))
    tail = (1 - level) / 2
    return float(np.quantile(found, tail)), float(np.quantile(found, 1 - tail))
