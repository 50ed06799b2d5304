"""Rollouts of a chain of agents: the next agent's rollout runs inside that of the agent before it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.constraints import RewardConstraints
from hf_rlae.trainers.cory.chain import Chain, answer_text
from hf_rlae.trainers.cory.credit import credited_rewards, with_share
from hf_rlae.trainers.cory.draws import draws_apart
from hf_rlae.trainers.cory.logs import AgentMetrics, CompletionColumns
from hf_rlae.trainers.cory.prompts import ObserverPrompts
from hf_rlae.trainers.cory.roles import role_labels

logger = logging.getLogger(__name__)


class ChainRollouts(AgentMetrics):
    """A mixin for TRL trainers with online rollouts: one rollout has the completions of all agents of a chain.

    The next agent's whole rollout runs inside `_calculate_rewards` of the agent before it, which returns the rewards
    that the agent learns from, so that TRL's code for advantages, KL and log-probabilities is unchanged.

    Source: CORY (arXiv 2410.06101) for the chain of two agents.
    """

    accelerator: Any
    reward_weights: torch.Tensor
    constraints: RewardConstraints
    order: Callable[..., list[str]]
    role_names: Callable[[], list[str]]
    columns: CompletionColumns
    observer_prompts: ObserverPrompts
    _chain: Chain | None = None
    _has_warned_of_cuts = False

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One rollout of all agents, with keys such as `agent-1/prompt_ids`."""
        agents, names = self.order(), self.role_names()
        roles = [self.args.role(name) for name in names]
        chain = self._chain = Chain(agents, roles, role_labels(names), inputs)
        weights = self.reward_weights
        try:
            self._take_turn(chain, inputs)
        finally:
            self._chain, self.reward_weights = None, weights
        return chain.merged(self.agents.names)

    def _take_turn(self, chain: Chain, inputs: list[dict[str, Any]]) -> None:
        """The rollout of the agent whose turn it is, and of all later agents."""
        position, agent = chain.position, chain.agent
        shown = chain.previous() if chain.is_reading else [[] for _ in inputs]
        columns = {"role": chain.role, "agent": agent}
        rows = [{**row, **columns, "previous_completions": texts} for row, texts in zip(inputs, shown, strict=True)]
        with self.agents.acting(agent), self._metrics_of(agent):
            batch = self.roll_out(agent, rows)
        learned = total_rewards(chain.learned[agent], self.reward_weights)
        start = self.accelerator.process_index * len(rows)
        chain.batches[agent] = {**batch, "rewards": learned[start : start + len(rows)]}
        chain.position = position

    def roll_out(self, agent: str, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One agent's rollout, while its adapter is active. An override point.

        Args:
            agent (`str`): its name.
            inputs (`list[dict]`): B examples; `prompt` is this agent's prompt.

        Returns:
            `dict`: TRL's batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, `advantages`, ...
        """
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc,no-any-return]

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        """The rewards that the agent learns from, of all processes, after the rollouts of all later agents."""
        if self._chain is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # type: ignore[misc,no-any-return]
        chain = self._chain
        position, agent, role = chain.position, chain.agent, chain.role
        own = super()._calculate_rewards(inputs, chain.prompts, completions, completion_ids_list)  # type: ignore[misc]
        chain.rewards.append(own)
        chain.completions.append(completions)
        mean = total_rewards(own, self.reward_weights).nanmean().item()
        metrics = self._metrics[self._mode]
        metrics[f"role/{role}/reward"].append(mean)
        metrics[f"agent/{agent}/reward"].append(mean)
        self.columns.add({"role": [role] * len(completions), "agent": [agent] * len(completions)})
        if position + 1 < len(chain.agents):
            with self.columns.put_aside(), draws_apart(position + 1):
                chain.position = position + 1
                self._take_turn(chain, self._observed(chain))
                chain.position = position
        elif self.constraints.least and self._mode == "train":
            for name, value in self.constraints.update(torch.cat(chain.rewards)).items():
                metrics[name].append(value)
            self.reward_weights = self.constraints.weights.to(self.reward_weights)
        self.columns.complete(len(completions))
        chain.learned[agent] = self._credited(chain, position)
        return chain.learned[agent]

    def _credited(self, chain: Chain, position: int) -> torch.Tensor:
        """The rewards that one agent learns from, when those of all agents are known."""
        rewards = [with_share(own, role.share) for own, role in zip(chain.rewards, chain.roles, strict=True)]
        return credited_rewards(rewards, position, self.args.credit, [role.is_reader for role in chain.roles])

    def _observed(self, chain: Chain) -> list[dict[str, Any]]:
        """The examples with the prompts of the agent whose turn it is."""
        if not chain.is_reading:
            return chain.rows
        answers = [[answer_text(completion) for completion in texts] for texts in chain.previous()]
        prompts, is_cut = self.observer_prompts(chain.prompts, answers, chain.roles[chain.position].template)
        cut = self.accelerator.gather(torch.tensor([float(flag) for flag in is_cut], device=self.accelerator.device))
        self._metrics[self._mode][f"role/{chain.role}/cut_ratio"].append(cut.mean().item())
        if any(is_cut) and not self._has_warned_of_cuts:
            self._has_warned_of_cuts = True  # each rollout's share is a metric
            logger.warning(
                "%d of %d prompts of the %s exceed %d tokens: answers were cut from the left",
                sum(is_cut), len(is_cut), chain.role, self.observer_prompts.max_length,
            )  # fmt: skip
        return [{**row, "prompt": prompt} for row, prompt in zip(chain.rows, prompts, strict=True)]
