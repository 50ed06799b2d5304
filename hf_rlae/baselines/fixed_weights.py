"""The best fixed weights: the baseline of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_rlae.checks import COUNT, Bounds, check_number


def simplex_grid(num_members: int, resolution: int) -> list[tuple[float, ...]]:
    """All weight vectors whose entries are multiples of `1 / resolution`.

    Args:
        num_members (`int`): M, at least 1.
        resolution (`int`): at least 1; 1 is each member alone.

    Returns:
        `list[tuple[float, ...]]`: each of M entries that sum to 1.

    Example:

    >>> simplex_grid(2, 2)
    [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    """
    check_number("num_members", num_members, COUNT)
    check_number("resolution", resolution, Bounds(1, is_whole=True, note="10 tries weights in steps of 0.1"))
    counts: list[tuple[int, ...]] = [()]
    for _ in range(num_members - 1):
        counts = [(*begun, part) for begun in counts for part in range(resolution - sum(begun) + 1)]
    return [tuple(part / resolution for part in (*begun, resolution - sum(begun))) for begun in counts]


@dataclass(frozen=True)
class FixedWeights:
    """The result of a search.

    Attributes:
        weights (`tuple[float, ...]`): the best ones.
        score (`float`): of the best weights.
        tried (`tuple[tuple[tuple[float, ...], float], ...]`): every weight vector with its score.
    """

    weights: tuple[float, ...]
    score: float
    tried: tuple[tuple[tuple[float, ...], float], ...]


def best_fixed_weights(score_fn: Callable[[Sequence[float]], float], num_members: int, resolution: int) -> FixedWeights:
    """Tries every weight vector of a grid; among equal scores, the weights nearest to equal weights win.

    Args:
        score_fn (callable): takes weights `(M,)` and returns a score, the larger the better, on data that is not used
            for reported results.
        num_members (`int`): M.
        resolution (`int`): steps of `1 / resolution`.

    Example:

    >>> best_fixed_weights(lambda weights: -abs(weights[0] - 0.7), 2, 10).weights
    (0.7, 0.3)
    """
    tried = [(weights, float(score_fn(weights))) for weights in simplex_grid(num_members, resolution)]
    weights, score = max(tried, key=lambda entry: (entry[1], -sum(weight**2 for weight in entry[0])))
    return FixedWeights(weights, score, tuple(tried))
