"""Shapley values of a chain's agents, from the rewards of all its smaller teams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial

import torch

Answer = tuple[int, frozenset[int]]
"""An agent's place in the chain, and the places of the earlier agents whose answers it has read."""


def answer_in(place: int, team: frozenset[int], is_reader: Sequence[bool]) -> Answer:
    """The answer of an agent in a team: it reads the answers that the earlier members of the team gave there."""
    return place, frozenset(other for other in team if other < place) if is_reader[place] else frozenset()


def further_answers(is_reader: Sequence[bool]) -> list[Answer]:
    """The answers that a chain has to write besides its own so that all smaller teams are known, earlier places first.

    Args:
        is_reader (`Sequence[bool]`): for each agent, whether it reads the answers before its own.

    Returns:
        `list`: `2**N - 1 - N` answers per prompt if all agents but the first read: 1 for two agents, 4 for three.

    Example:

    >>> further_answers([False, True])
    [(1, frozenset())]
    """
    everybody = frozenset(range(len(is_reader)))
    known = {answer_in(place, everybody, is_reader) for place in everybody}
    found = [answer_in(place, team, is_reader) for place in sorted(everybody) for team in _teams(sorted(everybody))]
    return [answer for answer in dict.fromkeys(found) if answer not in known]


def shapley_values(rewards: Mapping[Answer, torch.Tensor], is_reader: Sequence[bool]) -> list[torch.Tensor]:
    """Each agent's share of the team's reward: what it adds, averaged over the orders in which a team can grow.

    The value v(S) of a team S is the sum of its agents' rewards when they alone make up the chain: each reads the
    answers that earlier agents of S gave. `phi_i = sum over S without i of |S|! (N - |S| - 1)! / N! (v(S + i) - v(S))`.
    The values of all agents sum to the team's reward. For a pioneer and an observer, with the observer's reward r_2
    after the pioneer's answer and r_0 without it: `phi_1 = r_1 + (r_2 - r_0) / 2` and `phi_2 = (r_2 + r_0) / 2`.

    Source: Shapley, "A value for n-person games" (1953); answers of smaller teams in a chain are ours.

    Args:
        rewards (`Mapping[Answer, torch.Tensor]` of shape `(B, F)`): of the answers of all teams; NaN where a function
            could not judge.
        is_reader (`Sequence[bool]`): for each agent, whether it reads the answers before its own.

    Returns:
        `list[torch.Tensor]` of shape `(B, F)`: by place in the chain.

    Example:

    >>> none = frozenset()
    >>> rewards = {(0, none): torch.tensor(1.0), (1, none): torch.tensor(0.0), (1, frozenset({0})): torch.tensor(2.0)}
    >>> shapley_values(rewards, [False, True])
    [tensor(2.), tensor(1.)]
    """
    count = len(is_reader)

    def value(team: frozenset[int]) -> torch.Tensor:
        own = [rewards[answer_in(place, team, is_reader)] for place in sorted(team)]
        return torch.stack(own).sum(0) if own else torch.zeros_like(next(iter(rewards.values())))

    values = []
    for place in range(count):
        total = torch.zeros_like(next(iter(rewards.values())))
        for team in _teams([other for other in range(count) if other != place]):
            weight = factorial(len(team)) * factorial(count - len(team) - 1) / factorial(count)
            total = total + weight * (value(team | {place}) - value(team))
        values.append(total)
    return values


def _teams(places: Sequence[int]) -> list[frozenset[int]]:
    """All subsets, smaller ones first."""
    return [frozenset(team) for size in range(len(places) + 1) for team in combinations(places, size)]
