"""Prices of running members: what completions cost, and whether prices can teach a policy anything."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, present
from hf_rlae.objectives import objectives
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.rollouts import Rollouts

logger = logging.getLogger(__name__)


def member_prices(ensemble: EnsembleForCausalLM, args: RLAEConfig) -> torch.Tensor | None:
    """The price of a member-token of each member, `(M,)`; `None` without prices.

    Args:
        ensemble (`EnsembleForCausalLM`): with the policy to train.
        args (`RLAEConfig`): `member_cost` and what else decides about costs.

    Raises:
        ConfigError: another number of prices than members, or prices that no weights could change.
    """
    given = args.member_cost
    if given is None:
        return None
    count = len(ensemble.members)
    if len(given) not in (1, count):
        raise ConfigError(
            f"member_cost={given!r} has {len(given)} prices for {count} members; give one per member, or one number "
            "for all of them"
        )
    prices = list(given) * (count if len(given) == 1 else 1)
    if any(prices):
        _check_prices(ensemble, args, prices)
    return torch.tensor(prices)


def _check_prices(ensemble: EnsembleForCausalLM, args: RLAEConfig, prices: Sequence[float]) -> None:
    trained: Any = ensemble.policy
    config, policy = ensemble.config, trained.config
    if not objectives[args.objective].explores:
        raise ConfigError(
            f"member_cost with objective={args.objective!r}, which tries no other weights: a rollout does not show "
            "what other weights would cost; give 'ppo' or 'mappo'"
        )
    if args.multi_objective_aggregation == "normalize_then_sum":
        raise ConfigError(
            "member_cost with multi_objective_aggregation='normalize_then_sum': prices are in units of the reward, and "
            "normalised rewards have none; leave the aggregation out"
        )
    runs_all = policy.action != "categorical" and config.draw is None
    if runs_all and config.min_weight == 0 and config.max_active_members is None:
        raise ConfigError(
            f"member_cost with action={policy.action!r}: every member has some weight and runs for every token, so all "
            "weights cost the same; give the policy action='categorical', or the ensemble min_weight or "
            "max_active_members"
        )
    if policy.observes_members and (args.span_length or config.tokens_per_weights) == 1:
        raise ConfigError(
            f"member_cost with span_length=1 and observation={policy.observation!r}: the policy makes every member run "
            "at the first token of every span, so all weights cost the same; give longer spans, or a policy that reads "
            "the text (observation='text')"
        )
    if len(set(prices)) == 1 and policy.action == "categorical":
        logger.warning(
            "member_cost=%s with action='categorical': one member is drawn per span, and all have the same price, so "
            "only shorter completions cost less; give one price per member",
            prices,
        )
    if args.advantages == "group_relative" and args.scale_rewards == "group":
        logger.warning(
            "member_cost with scale_rewards='group': in groups with equal rewards, differences of costs alone are "
            "scaled to a deviation of 1, however small the prices; give scale_rewards='batch', or advantages='gae'"
        )


def span_costs(rollouts: Rollouts, prices: torch.Tensor | None) -> torch.Tensor:
    """What each span cost, `(N, S)`: its member-tokens times their prices `(M,)`; 0 without prices."""
    if prices is None:
        return torch.zeros(rollouts.span_mask.shape)
    counts = present(rollouts.member_tokens, "the member-tokens of a rollout")
    return counts.float() @ prices.to(counts.device)
