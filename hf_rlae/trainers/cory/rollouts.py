"""Rollouts of a chain of agents: the next agent's rollout runs inside that of the agent before it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object

from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.constraints import RewardConstraints
from hf_rlae.trainers.cory.chain import Chain, answer_text
from hf_rlae.trainers.cory.credit import credited_rewards, normalized_rewards, tied_rewards, with_share
from hf_rlae.trainers.cory.draws import draws_apart
from hf_rlae.trainers.cory.logs import CompletionColumns
from hf_rlae.trainers.cory.prompts import ObserverPrompts
from hf_rlae.trainers.cory.roles import role_labels
from hf_rlae.trainers.cory.shapley import Answer, answer_in, further_answers, shapley_values
from hf_rlae.trainers.cory.shared_rollouts import SharedRollouts

logger = logging.getLogger(__name__)


class ChainRollouts(SharedRollouts):
    """A mixin for TRL trainers with online rollouts: one rollout has the completions of all agents of a chain.

    The next agent's whole rollout runs inside `_calculate_rewards` of the agent before it, which returns the rewards
    that the agent learns from, so that TRL's code for advantages, KL and log-probabilities is unchanged.

    Source: CORY (arXiv 2410.06101) for the chain of two agents.
    """

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
            self._take_turn(chain)
            if self.args.shared_rollouts and self._mode == "train" and len(chain.agents) > 1:
                self._share_rollouts(chain, self._group_size)
        finally:
            self._chain, self.reward_weights = None, weights
        return chain.merged(self.agents.names)

    def _take_turn(self, chain: Chain) -> None:
        """The rollout of the agent whose turn it is, and of all later agents."""
        position, agent = chain.position, chain.agent
        shown = chain.previous() if chain.is_reader[position] else [[] for _ in chain.rows]
        rows = self._rows(chain, position, shown)
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
        chain.completions.append(self._shown(completions))
        mean = total_rewards(own, self.reward_weights).nanmean().item()
        metrics = self._metrics[self._mode]
        metrics[f"role/{role}/reward"].append(mean)
        metrics[f"agent/{agent}/reward"].append(mean)
        self.columns.add({"role": [role] * len(completions), "agent": [agent] * len(completions)})
        if position + 1 < len(chain.agents):
            with self.columns.put_aside(), draws_apart(position + 1):
                chain.position = position + 1
                self._take_turn(chain)
                chain.position = position
        elif self.constraints.least and self._mode == "train":
            for name, value in self.constraints.update(torch.cat(chain.rewards)).items():
                metrics[name].append(value)
            self.reward_weights = self.constraints.weights.to(self.reward_weights)
        self.columns.complete(len(completions))
        chain.learned[agent] = self._credited(chain, position)
        return chain.learned[agent]

    def _shown(self, completions: list[Any]) -> list[Any]:
        """For each row, the completion that later agents read."""
        if self.args.observer_groups == "own_reference":
            return completions
        everybody, size = gather_object(completions), self._group_size
        first = self.accelerator.process_index * len(completions)
        return [everybody[row // size * size] for row in range(first, first + len(completions))]

    @property
    def _group_size(self) -> int:
        """Completions per prompt."""
        owner: Any = self
        return int(owner.num_generations if self._mode == "train" else owner.num_generations_eval)

    def _rows(self, chain: Chain, place: int, shown: list[list[Any]]) -> list[dict[str, Any]]:
        """The examples for an agent that reads the given completions, with its prompts and the columns of rewards."""
        prompts = self._observed(chain, place, shown) if any(shown) else chain.prompts
        columns = {"role": chain.labels[place], "agent": chain.agents[place]}
        return [
            {**row, **columns, "prompt": prompt, "previous_completions": texts}
            for row, prompt, texts in zip(chain.rows, prompts, shown, strict=True)
        ]

    def _observed(self, chain: Chain, place: int, shown: list[list[Any]]) -> list[Any]:
        """The prompts of an agent that reads the given completions."""
        answers = [[answer_text(completion) for completion in texts] for texts in shown]
        prompts, is_cut = self.observer_prompts(chain.prompts, answers, chain.roles[place].template)
        cut = self.accelerator.gather(torch.tensor([float(flag) for flag in is_cut], device=self.accelerator.device))
        self._metrics[self._mode][f"role/{chain.labels[place]}/cut_ratio"].append(cut.mean().item())
        if any(is_cut) and not self._has_warned_of_cuts:
            self._has_warned_of_cuts = True  # each rollout's share is a metric
            logger.warning(
                "%d of %d prompts of the %s exceed %d tokens: answers were cut from the left",
                sum(is_cut), len(is_cut), chain.labels[place], self.observer_prompts.max_length,
            )  # fmt: skip
        return prompts

    # -- credit -------------------------------------------------------------------------------------------

    def _credited(self, chain: Chain, position: int) -> torch.Tensor:
        """The rewards that one agent learns from, when those of all agents are known.

        Evaluations have the sums of rewards as they are: differences have the mean 0, whatever the agents can do.
        """
        args, is_training = self.args, self._mode == "train"
        credit = args.credit if is_training or args.credit == "own" else "team"
        if credit == "shapley":
            chain.shapley = chain.shapley or shapley_values(self._rewards_of_teams(chain), chain.is_reader)
            return chain.shapley[position]
        rewards = chain.rewards
        if is_training and args.team_normalization:
            rewards = [normalized_rewards(own, self.reward_weights, self._group_size) for own in rewards]
        rewards = [with_share(own, role.share) for own, role in zip(rewards, chain.roles, strict=True)]
        if args.observer_groups == "shared_reference":
            rewards = tied_rewards(rewards, position, self._group_size)
        return credited_rewards(rewards, position, credit, chain.is_reader, self._group_size)

    def _rewards_of_teams(self, chain: Chain) -> dict[Answer, torch.Tensor]:
        """The rewards of the answers of all teams of the chain's agents; writes those that the chain does not have."""
        everybody = frozenset(range(len(chain.agents)))
        own = [answer_in(place, everybody, chain.is_reader) for place in sorted(everybody)]
        completions = dict(zip(own, chain.completions, strict=True))
        rewards = dict(zip(own, chain.rewards, strict=True))
        generator: Any = self
        for number, answer in enumerate(further_answers(chain.is_reader)):
            place, read = answer
            texts = [completions[answer_in(other, read, chain.is_reader)] for other in sorted(read)]
            shown = [[column[row] for column in texts] for row in range(len(chain.rows))]
            with (
                self.agents.acting(chain.agents[place]),
                draws_apart(len(everybody) + number),
                self.columns.put_aside(),
                self._metrics_aside(),
            ):
                rows = self._rows(chain, place, shown)
                _, ids, *others = generator._generate([row["prompt"] for row in rows])
                completions[answer] = others[1] if len(others) > 1 else others[0]  # GRPO has a mask before them
                rewards[answer] = super()._calculate_rewards(rows, chain.prompts, completions[answer], ids)  # type: ignore[misc]
        return {answer: with_share(found, chain.roles[answer[0]].share) for answer, found in rewards.items()}
