"""Options of `generate` that change the probabilities of tokens, and so bias the ratios of a policy gradient."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "sequence_bias": (),
    "bad_words_ids": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "num_beams": (1,),
    "do_sample": (True,),
}
"""Options that change the probabilities, with the values that do not, besides `None`."""


def distorting(options: Mapping[str, Any], temperature: float = 1.0) -> list[str]:
    """The options with which completions come from another distribution than the model's, as `name=value`.

    Args:
        options (`Mapping[str, Any]`): of `generate`.
        temperature (`float`, defaults to 1.0): of the distribution that is trained.

    Example:

    >>> distorting({"temperature": 0.7, "top_p": 1.0, "stop_strings": ["."]})
    ['temperature=0.7']
    """
    neutral = {**NEUTRAL, "temperature": (temperature,)}
    return [
        f"{name}={value}"
        for name, value in options.items()
        if value is not None and value not in neutral.get(name, (value,))
    ]


def warn_of_biased_ratios(options: Mapping[str, Any], temperature: float = 1.0) -> None:
    """Warns of options with which completions come from another distribution than the one that is trained.

    Args:
        options (`Mapping[str, Any]`): of `generate`.
        temperature (`float`, defaults to 1.0): of the distribution that is trained.
    """
    found = distorting(options, temperature)
    if found:
        logger.warning(
            "%s: completions are sampled from another distribution than the one that is trained, so importance ratios "
            "are biased; leave these options out unless this is intended",
            ", ".join(found),
        )
