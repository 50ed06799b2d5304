"""The model card of a learned policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hf_rlae.cards import RLAE, Card, CardMember
from hf_rlae.policies.configuration_policy import PolicyConfig

TAGS = ("rlae", "hf_rlae")
_SEES = {
    "members": "the members' last hidden states and next-token distributions",
    "text": "the text so far, with an encoder of its own",
    "both": "the members' last hidden states and next-token distributions, and the text so far",
}
_ACTORS = {"joint": "one agent gives all weights", "per_member": "one agent per member gives its score"}


def policy_card(config: PolicyConfig, name: str, members: Sequence[CardMember] = ()) -> Card:
    """What a policy's config tells about it; a trainer adds its training.

    Args:
        config (`PolicyConfig`): of the policy.
        name (`str`): the repository or folder from which the card's code loads it.
        members (`Sequence[CardMember]`): those of its training, in their order; those of the config if empty.
    """
    members = members or members_of(config)
    span = config.span_length
    unit = "the whole text, from the prompt" if span is None else f"each span of {span} tokens"
    return Card(
        title=name.rstrip("/").split("/")[-1],
        description=f"""
A policy for an ensemble of {config.num_members} language models that write one text together: it gives every member a
weight for {unit}. It observes {_SEES[config.observation]}; {_ACTORS[config.actor]}. It works with the members of its
training, in their order. The members' own weights are not part of it.
""",
        use=_use(config, name, members),
        tags=TAGS,
        members=members,
        limits=[
            "Every member that has a weight runs for every token, and needs its own memory.",
            "With other members than those of its training, weights mean little. Other numbers of members and other "
            "widths of hidden states are refused.",
            "A policy can only choose among what its members would write; it inherits their limits and biases, and "
            "their licences apply.",
        ],
        citations=[RLAE],
    )


def members_of(config: PolicyConfig) -> list[CardMember]:
    """The members that a policy's config names."""
    named: Any = getattr(config, "members", None) or []
    return [CardMember(str(entry["id"]), entry.get("commit")) for entry in named if entry.get("id")]


def _use(config: PolicyConfig, name: str, members: Sequence[CardMember]) -> str:
    span = config.span_length
    options = 'select="prompt"' if span is None else f"span_length={span}"
    listed = [member.name for member in members] or [f"member-{number}" for number in range(1, config.num_members + 1)]
    is_whole = bool(members) and all(member.is_on_hub for member in members)
    note = "" if is_whole else "  # give the folders of members that are not on the Hub"
    commits = [member.commit for member in members]
    pinned = f", revisions={json.dumps(commits)}".replace("null", "None") if any(commits) else ""
    return f"""
from hf_rlae import EnsembleForCausalLM

members = {json.dumps(listed)}{note}
ensemble = EnsembleForCausalLM.from_members(members, policy={json.dumps(name)}, {options}{pinned})
inputs = ensemble.tokenizer(["Once upon a time"], return_tensors="pt")
print(ensemble.tokenizer.batch_decode(ensemble.generate(**inputs, max_new_tokens=32), skip_special_tokens=True))
"""
