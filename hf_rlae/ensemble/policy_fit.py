"""Checks that a policy fits the members of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member
from hf_rlae.policies import Policy, check_is_policy, members_of, observed_tokens

logger = logging.getLogger(__name__)


def check_policy_fits(policy: Policy, members: Sequence[Member], settings: EnsembleConfig) -> None:
    """Raises an error if a policy does not fit the members; see [`EnsembleForCausalLM.check_policy`].

    Args:
        policy (`Policy`): the policy.
        members (`Sequence[Member]`): the members of the ensemble.
        settings (`EnsembleConfig`): of the ensemble; a policy that was made for spans of another length is used, with a
            warning.
    """
    check_is_policy(policy)
    wanted = members_of(policy)
    if wanted is not None and wanted != len(members):
        raise ConfigError(
            f"policy: {type(policy).__name__} weighs {wanted} members, this ensemble has {len(members)}; make the "
            "policy for that number"
        )
    config = getattr(policy, "config", None)
    sizes = getattr(config, "member_hidden_sizes", None)
    given = [member.hidden_size for member in members]
    if sizes is not None and getattr(config, "observes_members", True) and list(sizes) != given:
        raise ConfigError(
            f"policy: member_hidden_sizes={list(sizes)}, but the hidden states of these members have the widths "
            f"{given}; make the policy with `PolicyConfig.for_members(ensemble.members)`"
        )
    observed = observed_tokens(policy)  # raises for an invalid `pooled_tokens`
    if observed and settings.select == "prompt":
        raise ConfigError(
            f'select="prompt": the policy picks members before any of them runs, but this {type(policy).__name__} '
            "observes the members; give a policy that reads the text (`PolicyModel.from_encoder(encoder, members)`; a "
            'callable of yours has `observes_members = False`), or leave select="prompt" out'
        )
    used_for = settings.span_length_of_policy
    made_for: int | None = getattr(config, "span_length", used_for)
    if made_for != used_for:
        logger.warning(
            "the policy was made for %s, but this ensemble asks it for %s; build the ensemble with %s unless this is "
            "intended",
            _unit(made_for),
            _unit(used_for),
            'select="prompt"' if made_for is None else f"span_length={made_for}",
        )


def _unit(span_length: int | None) -> str:
    return "whole texts" if span_length is None else f"spans of {span_length} tokens"
