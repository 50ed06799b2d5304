"""hf_rlae: several language models decode one text together inside transformers' `generate`."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "ByteVocabulary": "hf_rlae.vocabulary",
    "EnsembleCache": "hf_rlae.ensemble",
    "EnsembleConfig": "hf_rlae.ensemble",
    "EnsembleForCausalLM": "hf_rlae.ensemble",
    "EnsembleLogitsProcessor": "hf_rlae.ensemble",
    "EntropyPolicy": "hf_rlae.policy",
    "Member": "hf_rlae.member",
    "PerplexityPolicy": "hf_rlae.policy",
    "PolicyConfig": "hf_rlae.policy",
    "PolicyModel": "hf_rlae.policy",
    "PolicyOutput": "hf_rlae.policy",
    "PolicyState": "hf_rlae.policy",
    "StaticPolicy": "hf_rlae.policy",
    "UniformPolicy": "hf_rlae.policy",
    "UnionVocabulary": "hf_rlae.vocabulary",
    "load_member": "hf_rlae.zoo",
    "load_members": "hf_rlae.zoo",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_rlae' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
