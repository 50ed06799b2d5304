"""Whether the two sides of a remote member are the same: package versions, and a hash of config and vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from hf_rlae import __version__
from hf_rlae.members.fingerprint import describe_model, describe_tokenizer, digest_of


def versions() -> dict[str, str]:
    """The versions of the packages that compute a member's logits."""
    return {"hf_rlae": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def model_hash(config: Any, tokenizer: Any) -> str:
    """A hash of a model's config, and of its tokenizer's vocabulary and chat template.

    Args:
        config (`PreTrainedConfig`): of its text model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    return digest_of([describe_model(config, ())["config"], describe_tokenizer(tokenizer)])
