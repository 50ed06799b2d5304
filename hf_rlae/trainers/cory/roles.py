"""The roles of agents: who answers first, and when roles are exchanged."""

from __future__ import annotations

from collections.abc import Sequence


def role_names(count: int) -> list[str]:
    """The roles of a chain, in the order of its agents.

    Args:
        count (`int`): number of agents in the chain.

    Example:

    >>> role_names(2), role_names(3)
    (['pioneer', 'observer'], ['pioneer', 'observer-1', 'observer-2'])
    """
    if count <= 2:
        return ["pioneer", "observer"][:count]
    return ["pioneer", *(f"observer-{number}" for number in range(1, count))]


def order_at(step: int, agents: Sequence[str], exchange_steps: int) -> list[str]:
    """The order of the agents in the chain at an optimizer step; the first is the pioneer.

    After every `exchange_steps` the last agent becomes the pioneer, and all others move one place down the chain. With
    two agents that is an exchange; N exchanges of N agents restore the first order.

    Source: CORY (arXiv 2410.06101) for two agents.

    Args:
        step (`int`): number of finished optimizer steps.
        agents (`Sequence[str]`): in their initial order.
        exchange_steps (`int`): T; 0 for never.

    Example:

    >>> [order_at(step, ["a", "b"], 2)[0] for step in range(6)]
    ['a', 'a', 'b', 'b', 'a', 'a']
    """
    if not exchange_steps:
        return list(agents)
    shift = -(step // exchange_steps) % len(agents)
    return [*agents[shift:], *agents[:shift]]
