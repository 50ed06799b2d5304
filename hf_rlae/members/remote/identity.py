"""Whether the two sides of a remote member are the same: package versions, and a hash of config and vocabulary."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import transformers

from hf_rlae import __version__

_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "architectures")
"""Entries of a config that say where and how a model was loaded, not which one."""


def versions() -> dict[str, str]:
    """The versions of the packages that compute a member's logits."""
    return {"hf_rlae": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def model_hash(config: Any, tokenizer: Any) -> str:
    """The SHA-256 of a model's config and of its tokenizer's vocabulary.

    Args:
        config (`PreTrainedConfig`): of its text model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    kept = {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([kept, vocabulary], sort_keys=True, default=str).encode()).hexdigest()
