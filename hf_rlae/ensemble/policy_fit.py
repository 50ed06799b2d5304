"""Checks that a policy fits the members of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hf_rlae.errors import ConfigError
from hf_rlae.members import Member
from hf_rlae.policies import Policy, check_is_policy, members_of, observed_tokens

logger = logging.getLogger(__name__)


def check_policy_fits(policy: Policy, members: Sequence[Member], span_length: int) -> None:
    """Raises an error if a policy does not fit the members; see [`EnsembleForCausalLM.check_policy`].

    Args:
        policy (`Policy`): the policy.
        members (`Sequence[Member]`): the members of the ensemble.
        span_length (`int`): of the ensemble; a policy that was made for another one is used, with a warning.
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
    observed_tokens(policy)  # raises for an invalid `pooled_tokens`
    made_for = getattr(config, "span_length", None)
    if made_for is not None and made_for != span_length:
        logger.warning(
            "the policy was made for spans of %s tokens, but the spans of this ensemble have %s; build the ensemble "
            "with span_length=%s unless this is intended",
            made_for,
            span_length,
            made_for,
        )
