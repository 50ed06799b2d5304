"""Who is the pioneer, and which rewards each agent learns from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

SEPARATOR = "/"


def role_names(count: int) -> list[str]:
    """The roles of a chain, in the order in which the agents write.

    Args:
        count (`int`): agents in the chain.

    Example:

    >>> role_names(2), role_names(3)
    (['pioneer', 'observer'], ['pioneer', 'observer-1', 'observer-2'])
    """
    if count <= 2:
        return ["pioneer", "observer"][:count]
    return ["pioneer", *(f"observer-{number}" for number in range(1, count))]


def order_at(step: int, agents: Sequence[str], exchange_steps: int) -> list[str]:
    """The agents in the order in which they write at an optimizer step: the first is the pioneer.

    After every `exchange_steps` the last one becomes the pioneer, and all others move one place on. With two agents
    that is an exchange; N exchanges of N agents are the identity.

    Source: CORY (arXiv 2410.06101) for two agents.

    Args:
        step (`int`): optimizer steps done.
        agents (`Sequence[str]`): in their first order.
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
    """What the agent at one position of the chain learns from.

    `"team"` is the sum of all agents' rewards. `"own"` is the sum of those that the agent's answer can change: its own
    and those of later agents, who have read it; without knowledge transfer its own alone. Both have the same expected
    gradient, because what an agent cannot change is a constant to it; under a group baseline that constant is noise.

    Source: CORY (arXiv 2410.06101) for `"team"`; `"own"` is ours.

    Args:
        rewards (`Sequence[torch.Tensor]` of shape `(B, F)`): one tensor an agent, in the order of the chain; NaN for
            what could not be judged, which makes the sum NaN, too.
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
    if observer_reward == "team":
        counted = rewards
    elif knowledge_transfer:
        counted = rewards[position:]
    else:
        counted = rewards[position : position + 1]
    return torch.stack(list(counted)).sum(0)


@contextlib.contextmanager
def draws_apart(position: int) -> Iterator[None]:
    """Random numbers of their own for one agent of the chain; afterwards the generators are as they were.

    So the pioneer draws what it would draw alone, whatever follows it. The seed is a digest of the generators' state:
    a resumed run draws the same.

    Source: ours.

    Args:
        position (`int`): in the chain.

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
    """One rollout of all agents while it is being made.

    Args:
        agents (`list[str]`): in the order in which they write.
        rows (`list[dict]`): B examples of the dataset, one a completion.
        position (`int`, defaults to 0): of the agent whose turn it is.
        completions (`list[list]`): one list of B completions for each agent that has written.
        rewards (`list[torch.Tensor]`): the same for their own rewards, of all processes, shape `(B', F)`.
        learned (`dict[str, torch.Tensor]`): by agent, the rewards that it learns from.
        batches (`dict[str, dict]`): by agent, what TRL made of its rollout.
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
        """Whose turn it is."""
        return self.agents[self.position]

    @property
    def role(self) -> str:
        """Of the agent whose turn it is."""
        return role_names(len(self.agents))[self.position]

    @property
    def prompts(self) -> list[Any]:
        """The original prompts."""
        return [row["prompt"] for row in self.rows]

    def previous(self) -> list[list[Any]]:
        """For each row, the completions so far, the earliest first."""
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
    """One agent's part of a batch that `Chain.merged` made; empty if it has none.

    Example:

    >>> batch_of("agent-1", {"agent-1/prompt_ids": 1, "agent-2/prompt_ids": 2})
    {'prompt_ids': 1}
    """
    start = f"{agent}{SEPARATOR}"
    return {key.removeprefix(start): value for key, value in inputs.items() if key.startswith(start)}


def answer_text(completion: Any) -> str:
    """The text of a completion in TRL's form.

    Args:
        completion (`str` or `list[dict]`): as reward functions get it.

    Example:

    >>> answer_text([{"role": "assistant", "content": "4"}])
    '4'
    """
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") for message in completion]
    return "".join(content for content in contents if isinstance(content, str))
