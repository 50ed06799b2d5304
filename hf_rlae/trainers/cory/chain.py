"""The state of one rollout of a chain of agents, and one batch of all agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_rlae.trainers.cory.roles import Role

SEPARATOR = "/"


@dataclass
class Chain:
    """The state of one rollout of all agents.

    Args:
        agents (`list[str]`): in the order of the chain.
        roles (`list[Role]`), labels (`list[str]`): the role of each agent, and its name.
        rows (`list[dict]`): B examples of the dataset, one per completion.
        position (`int`, defaults to 0): of the agent whose turn it is.
        completions (`list[list]`): for each agent that has finished, the B completions that later agents read.
        rewards (`list[torch.Tensor]`): for each of these agents its own rewards, of all processes, shape `(B', F)`.
        shapley (`list[torch.Tensor]`, *optional*): for each agent, its Shapley values.
        learned (`dict[str, torch.Tensor]`): by agent, the rewards that it learns from.
        batches (`dict[str, dict]`): by agent, TRL's batch of its rollout.
    """

    agents: list[str]
    roles: list[Role]
    labels: list[str]
    rows: list[dict[str, Any]]
    position: int = 0
    completions: list[list[Any]] = field(default_factory=list)
    rewards: list[torch.Tensor] = field(default_factory=list)
    shapley: list[torch.Tensor] | None = None
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def agent(self) -> str:
        """The agent whose turn it is."""
        return self.agents[self.position]

    @property
    def role(self) -> str:
        """The name of the role of the agent whose turn it is."""
        return self.labels[self.position]

    @property
    def is_reader(self) -> list[bool]:
        """For each agent, whether it reads the earlier answers."""
        return [role.is_reader for role in self.roles]

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
