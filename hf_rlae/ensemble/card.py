"""The model card of an ensemble."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hf_rlae.cards import RLAE, Card, changed_settings, member_of
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
