"""The roles of agents, and the rewards that each of them learns from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

SEPARATOR = "/"


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


def learned_rewards(
    rewards: Sequence[torch.Tensor], position: int, observer_reward: str, knowledge_transfer: bool
) -> torch.Tensor:
    """The rewards that the agent at one position of the chain learns from.

    `"team"` is the sum of all agents' rewards. `"own"` is the sum of the rewards that the agent's answer can change:
    its own and those of later agents, which have read it; without knowledge transfer, its own alone. Both have the same
    expected gradient, because rewards that the agent cannot change are constants; under a group baseline they are
    noise.

    Source: CORY (arXiv 2410.06101) for `"team"`; `"own"` is ours.

    Args:
        rewards (`Sequence[torch.Tensor]` of shape `(B, F)`): one tensor per agent, in the order of the chain; NaN
            where a function could not judge, which makes the sum NaN.
        position (`int`): of the agent.
        observer_reward (`str`): `"team"` or `"own"`.
        knowledge_transfer (`bool`): whether later agents have read earlier answers.

    Returns:
        `torch.Tensor` of shape `(B, F)`.

    Example:

    >>> rewards = [torch.tensor([[1.0]]), torch.tensor([[0.5]])]
    >>> [learned_rewards(rewards, position, "own", True).item() for position in (0, 1)]
    [1.5, 0.5]
    """
    first = 0 if observer_reward == "team" else position
    last = position if observer_reward == "own" and not knowledge_transfer else len(rewards) - 1
    return torch.stack(list(rewards[first : last + 1])).sum(0)


@contextlib.contextmanager
def draws_apart(position: int) -> Iterator[None]:
    """Separate random numbers for one agent of the chain; afterwards the generators have their former state.

    The pioneer then draws the same numbers as without observers. The seed is a digest of the generators' state, so that
    a resumed run draws the same numbers.

    Source: ours.

    Args:
        position (`int`): of the agent in the chain.

    Example:

    >>> before = torch.random.get_rng_state()
    >>> with draws_apart(1):
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.random.get_rng_state(), before)
    True
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    digest = hashlib.blake2b(position.to_bytes(4, "big"), digest_size=7)
    for state in (torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)):
        digest.update(state.numpy().tobytes())
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(digest.digest(), "big"))
        yield


@dataclass
class Chain:
    """The state of one rollout of all agents.

    Args:
        agents (`list[str]`): in the order of the chain.
        rows (`list[dict]`): B examples of the dataset, one per completion.
        position (`int`, defaults to 0): of the agent whose turn it is.
        completions (`list[list]`): B completions for each agent that has finished.
        rewards (`list[torch.Tensor]`): for each of these agents its own rewards, of all processes, shape `(B', F)`.
        learned (`dict[str, torch.Tensor]`): by agent, the rewards that it learns from.
        batches (`dict[str, dict]`): by agent, TRL's batch of its rollout.
    """

    agents: list[str]
    rows: list[dict[str, Any]]
    position: int = 0
    completions: list[list[Any]] = field(default_factory=list)
    rewards: list[torch.Tensor] = field(default_factory=list)
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def agent(self) -> str:
        """The agent whose turn it is."""
        return self.agents[self.position]

    @property
    def role(self) -> str:
        """The role of the agent whose turn it is."""
        return role_names(len(self.agents))[self.position]

    @property
    def prompts(self) -> list[Any]:
        """The original prompts."""
        return [row["prompt"] for row in self.rows]

    def previous(self) -> list[list[Any]]:
        """For each row, the completions of earlier agents, the earliest first."""
        return [[texts[row] for texts in self.completions] for row in range(len(self.rows))]

    def merged(self, names: Sequence[str]) -> dict[str, Any]:
        """One batch of all agents, with keys such as `agent-1/prompt_ids`, in a fixed order of agents."""
        return {
            f"{name}{SEPARATOR}{key}": value
            for name in names
            if name in self.batches
            for key, value in self.batches[name].items()
        }


def batch_of(agent: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """One agent's part of a batch of `Chain.merged`; empty if it has none.

    Example:

    >>> batch_of("agent-1", {"agent-1/prompt_ids": 1, "agent-2/prompt_ids": 2})
    {'prompt_ids': 1}
    """
    start = f"{agent}{SEPARATOR}"
    return {key.removeprefix(start): value for key, value in inputs.items() if key.startswith(start)}


def answer_text(completion: Any) -> str:
    """The text of a completion in TRL's form.

    Args:
        completion (`str` or `list[dict]`): as reward functions receive it.

    Example:

    >>> answer_text([{"role": "assistant", "content": "4"}])
    '4'
    """
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") for message in completion]
    return "".join(content for content in contents if isinstance(content, str))
