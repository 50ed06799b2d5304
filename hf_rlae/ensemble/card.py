"""The model card of an ensemble."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hf_rlae.cards import RLAE, Card, CardMember, changed_settings, code, member_of
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.options import EnsembleOptions

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_MIXINGS = {
    "linear": "the weighted mean",
    "log": "the weighted product",
    "power": "a weighted power mean",
    "contrast": "the contrast (contrastive decoding, arXiv 2210.15097: the first member minus the others)",
    "guidance": "the guidance (classifier-free guidance, arXiv 2306.17806: away from a negative prompt)",
}


def ensemble_card(ensemble: EnsembleForCausalLM, config: EnsembleConfig, name: str) -> Card:
    """What a saved ensemble is, and how to load it.

    Args:
        ensemble (`EnsembleForCausalLM`): the ensemble.
        config (`EnsembleConfig`): as it is saved, with members and commits.
        name (`str`): the repository or folder from which the card's code loads it.
    """
    policy: Any = ensemble.policy
    kind = getattr(policy, "registered_name", None) or type(policy).__name__
    span = config.span_length_of_policy
    unit = "the whole text" if span is None else f"each span of {span} tokens"
    mixed = _MIXINGS.get(config.mixing, f"`{config.mixing}` mixing")
    revisions = config.revisions or [None] * len(ensemble.members)
    sources = zip(config.members or [], ensemble.members, revisions, strict=False)
    shared = "share one tokenizer" if ensemble.union is None else "have different tokenizers"
    saved = changed_settings(config)
    return Card(
        title=name.rstrip("/").split("/")[-1],
        description=f"""
An ensemble of {len(ensemble.members)} language models that write one text together: every next token comes from {mixed}
of their distributions. The policy `{kind}` gives the weights for {unit}. The members {shared}.
""",
        use=f"""
from hf_rlae import EnsembleForCausalLM

ensemble = EnsembleForCausalLM.from_pretrained({json.dumps(name)})
inputs = ensemble.tokenizer(["Once upon a time"], return_tensors="pt")
print(ensemble.tokenizer.batch_decode(ensemble.generate(**inputs, max_new_tokens=32), skip_special_tokens=True))
""",
        tags=("rlae", "hf_rlae"),
        members=[
            member_of(source or member.name, revision if source else None) for source, member, revision in sources
        ],
        settings={field: value for field, value in saved.items() if field in EnsembleOptions.__annotations__},
        limits=[
            "Every member that has a weight runs for every token, and needs its own memory.",
            "Members that are not saved here are loaded from their own repositories, under their own licences.",
            "An ensemble inherits the limits and biases of its members.",
        ],
        citations=[RLAE],
    )


def custom_generate_card(config: EnsembleConfig, ensemble: str, revision: str | None, name: str) -> Card:
    """The page of a `custom_generate` repository: how a plain model calls it, and its arguments.

    Args:
        config (`EnsembleConfig`): of the saved ensemble.
        ensemble (`str`): its folder or Hub id.
        revision (`str`, *optional*): its revision in the code.
        name (`str`): the repository or folder of the code.
    """
    members = _members(config)
    first = members[0]
    at = f" at commit {code(revision)}" if revision else ""
    pinned = f", revision={json.dumps(first.commit)}" if first.commit else ""
    return Card(
        title=name.rstrip("/").split("/")[-1],
        description=f"""
Code for `custom_generate` of transformers: a plain model generates with the ensemble {member_of(ensemble).shown}{at},
whose first member it is. The other members and the policy are loaded at the first call and kept; the model itself is
used as it is. The ids are those of the model's own tokenizer.
""",
        use=f"""
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({json.dumps(first.name)}{pinned})
tokenizer = AutoTokenizer.from_pretrained({json.dumps(first.name)}{pinned})
inputs = tokenizer("Once upon a time", return_tensors="pt")
ids = model.generate(**inputs, custom_generate={json.dumps(name)}, trust_remote_code=True, max_new_tokens=32)
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
""",
        tags=("custom_generate", "rlae", "hf_rlae"),
        members=members,
        training='Arguments beside those of `generate`: `member_dtype` (of the other members, `"auto"` by default), '
        "`check_host` (`False` accepts a copy of the first member from another place), `allow_outside` (members in "
        "folders outside of the ensemble's), `ensemble` and `ensemble_revision` (another ensemble with the same first "
        "member). `hf_rlae.free_ensembles()` frees the members.",
        training_title="Arguments",
        limits=[
            "It works on the ensemble's first member only.",
            "Logits processors and stopping criteria see ids of the ensemble, which begin with the model's own.",
            "An ensemble inherits the limits and biases of its members, and their licences apply.",
        ],
        citations=[RLAE],
    )


def _members(config: EnsembleConfig) -> list[CardMember]:
    names = config.members or []
    revisions = config.revisions or [None] * len(names)
    return [member_of(name or "model", revision) for name, revision in zip(names, revisions, strict=False)]
