"""`CoryPPOTrainer`: CORY with PPO over tokens, as close to the paper as TRL's `GRPOTrainer` allows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hf_rlae.trainers.cory.configuration_cory import CoryArguments
from hf_rlae.trainers.cory.trainer import CoryMixin
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOConfig
from hf_rlae.trainers.token_ppo.trainer import TokenPPOTrainer


@dataclass
class CoryPPOConfig(CoryArguments, TokenPPOConfig):  # type: ignore[misc]  # a narrower scale_rewards
    r"""Arguments of [`CoryPPOTrainer`]: those of [`CoryArguments`], [`TokenPPOArguments`] and `trl.GRPOConfig`.

    `kl_target=None` keeps every agent's KL coefficient at `kl_coef`. `num_generations` is the number of completions per
    prompt, at least 2; there is no group baseline.

    Example:

    >>> config = CoryPPOConfig("out", num_generations=4, report_to="none")
    >>> config.epsilon, config.value_coef, config.gamma, config.lam, config.kl_coef, config.kl_target
    (0.2, 0.1, 1.0, 0.95, 0.2, 6.0)
    """


class CoryPPOTrainer(CoryMixin, TokenPPOTrainer):
    """[`CoryMixin`] on [`TokenPPOTrainer`]: every agent has its own value head and its own KL coefficient.

    Values, the KL coefficient and its adaptation belong to the agent, not to the role; an exchange of roles does not
    reset them. Until it has learned, each agent's head predicts the mean reward of the agent's first rollout.

    Differences from the paper and its public code:

    * the KL in the reward of a token is the log-ratio of the sampled token, as in public code; the paper's is over the
      full vocabulary: `kl_penalty="full"`;
    * one frozen base model with a LoRA adapter and a linear value head per agent, instead of two full models with a
      head each;
    * the heads start at the mean reward and have no dropout, instead of a random start with dropout;
    * an exchange resets nothing; the public code resets Adam, KL coefficient, reward statistics and random seed;
    * `role_exchange_steps` counts optimizer steps, of which a rollout serves `num_iterations * steps_per_generation /
      gradient_accumulation_steps`; an exchange takes effect with the next rollout;
    * each prompt is answered `num_generations >= 2` times, as TRL's trainer requires; without a group baseline this
      only lowers the number of different prompts of a rollout;
    * surrogate and value loss are means over the tokens of an optimizer step's share of the rollout
      (`loss_type="dapo"`), whatever micro-batches it is split into, instead of means over each minibatch;
    * all passes over a rollout have the same order of micro-batches, instead of a new order each time;
    * a minibatch with large ratios is not skipped; clipping alone bounds the step;
    * gradients are clipped agent by agent (`max_grad_norm`);
    * the optimizer is that of `args` (by default AdamW with a linearly decreasing learning rate), instead of Adam at a
      constant rate;
    * rewards are neither scaled nor clipped, and whitening of advantages is optional (`whiten_advantages`);
    * a completion that no reward function could judge is left out of both losses;
    * the templates of observers' prompts are ours (`observer_template`).

    See [`CoryMixin`] for arguments and errors, and [`CoryPPOConfig`] for settings. Besides the metrics of
    [`CoryMixin`], it logs `kl_coef`, `text_kl`, `value/loss`, `value/clip_ratio`, `value/mean` and
    `value/explained_variance`, as means over agents and, with the prefix `agent/<name>/`, of each agent. Checkpoints
    have the value heads; published adapters and `load_best_model_at_end` do not, since generation does not need them.

    Source: CORY (arXiv 2410.06101).
    """

    _name = "CORY-PPO"  # type: ignore[misc]
    config_class: ClassVar[type] = CoryPPOConfig
    per_agent_metrics: ClassVar[tuple[str, ...]] = (
        *CoryMixin.per_agent_metrics,
        "kl_coef",
        "text_kl",
        "value/loss",
        "value/clip_ratio",
        "value/mean",
        "value/explained_variance",
    )

    @functools.wraps(CoryMixin.__init__)  # type: ignore[misc]  # the same arguments
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_value_heads(self.agents.names[1:])

    @property
    def agent_name(self) -> str:
        """The agent whose adapter is active; in the constructor, the first agent."""
        agents = vars(self).get("agents")
        return str(self.args.names[0] if agents is None else agents.active)

    def agent_parameters(self, agent: str) -> list[nn.Parameter]:
        """See `CoryMixin`: the adapter and the value head."""
        adapter = super().agent_parameters(agent)
        known = {id(parameter) for parameter in adapter}
        return [*adapter, *(own for own in self.value_head(agent).parameters() if id(own) not in known)]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The rewards that the agent learns from, possibly those of the team."""
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._keep_rewards(rewards)
        return rewards
