"""Checks that a policy fits the members of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.member_places import is_folder, name_of
from hf_rlae.ensemble.pins import vocabulary_hashes
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member
from hf_rlae.policies import MEMBER_FIELDS, Policy, check_is_policy, members_of, observed_tokens

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

logger = logging.getLogger(__name__)

_FIELDS = {"id": "ids", "commit": "commits", "vocabulary_hash": "vocabularies"}
"""The plural of each of `MEMBER_FIELDS`."""


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


def describe_members(ensemble: EnsembleForCausalLM) -> list[dict[str, Any]]:
    """The members of an ensemble as [`PolicyConfig`] keeps them; paths are private: only names are kept."""
    described = []
    for member, hashed in zip(ensemble.members, vocabulary_hashes(ensemble), strict=True):
        place = member.source and (name_of(member.source) if is_folder(member.source) else member.source)
        described.append({"id": place or None, "commit": member.commit, "vocabulary_hash": hashed})
    return described


def warn_of_other_members(policy: Policy, ensemble: EnsembleForCausalLM) -> None:
    """Logs one warning if a policy was trained with other members than those of an ensemble; unknown values are equal.

    Args:
        policy (`Policy`): the policy; only a [`PolicyModel`] knows its members.
        ensemble (`EnsembleForCausalLM`): the ensemble that uses it.
    """
    trained: Any = getattr(getattr(policy, "config", None), "members", None)
    if not isinstance(policy, nn.Module) or not trained or len(trained) != len(ensemble.members):
        return
    counts = dict.fromkeys(MEMBER_FIELDS, 0)
    examples = []
    for index, (old, new) in enumerate(zip(trained, describe_members(ensemble), strict=True)):
        unlike = [name for name in MEMBER_FIELDS if None not in (old.get(name), new[name]) and old[name] != new[name]]
        if "id" in unlike and "commit" in unlike:  # commits of different repositories always differ
            unlike.remove("commit")
        if "id" in unlike and _may_be_renamed(new["id"], old, trained):
            unlike.remove("id")
        for name in unlike:
            counts[name] += 1
        if unlike:
            examples.append(f"member {index} is {new['id']}, and was {old.get('id')}" * ("id" in unlike))
    if examples:
        found = ", ".join(f"{count} {_FIELDS[name]}" for name, count in counts.items() if count)
        logger.warning(
            "the policy was trained with other members: of %d members, %s differ%s; it is used, but its weights may "
            "not suit these members: train it with them, or build the ensemble with those of its training",
            len(trained),
            found,
            "".join(f" ({example})" for example in filter(None, examples)),
        )


def _may_be_renamed(name: str, old: dict[str, Any], trained: Sequence[dict[str, Any]]) -> bool:
    """Whether another name may belong to the same member: folders are copied and renamed, and hashes of vocabularies
    tell more than their names. The name of another trained member is no new one, but the members' order is."""
    is_hub = "/" in name and "/" in str(old["id"])
    return not is_hub and bool(old.get("vocabulary_hash")) and name not in [entry.get("id") for entry in trained]


def _unit(span_length: int | None) -> str:
    return "whole texts" if span_length is None else f"spans of {span_length} tokens"
