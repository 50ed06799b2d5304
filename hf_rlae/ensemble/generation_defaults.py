"""Generation configs of ensembles: the defaults of their `generate`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig

from hf_rlae.members import Member
from hf_rlae.vocabulary import are_token_ids

logger = logging.getLogger(__name__)

_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
_ROWS = ("num_beams", "num_beam_groups", "num_return_sequences")
MOST_ROWS = 256
"""Rows per prompt above which a saved number of beams or samples is not used."""
MOST_TOKENS = 1_000_000
"""The same for lengths, if a member has no maximum length."""


def generation_config_of(members: Sequence[Member]) -> GenerationConfig:
    """A copy of a single member's own; for several, the defaults with the first one's special ids and all end ids."""
    first = members[0].generation_config or GenerationConfig()
    if len(members) == 1:
        return without_extremes(copy.deepcopy(first), members)
    ends = sorted({i for member in members for i in member.end_ids})
    tokenizer = members[0].tokenizer
    bos = first.bos_token_id if first.bos_token_id is not None else tokenizer.bos_token_id
    pad = first.pad_token_id if first.pad_token_id is not None else tokenizer.pad_token_id
    if pad is None and ends:
        pad = ends[0]
    return GenerationConfig(
        bos_token_id=bos, pad_token_id=pad, eos_token_id=ends[0] if len(ends) == 1 else (ends or None)
    )


def saved_generation_config(
    ensemble: Any, source: str, options: dict[str, Any], *, has_saved_ids: bool
) -> GenerationConfig:
    """The generation config that was saved with an ensemble; the ensemble's own if there is none that can be used.

    Args:
        ensemble (`EnsembleForCausalLM`): the loaded ensemble.
        source (`str`), options (`dict`): its folder or Hub id, and options of the Hub.
        has_saved_ids (`bool`): whether ids mean what they meant when it was saved; other members have other ids.
    """
    try:
        saved = GenerationConfig.from_pretrained(source, **options)
    except OSError:
        return ensemble.generation_config
    except Exception as error:  # transformers refuses contradictions
        logger.warning("the saved generation config is ignored: %s", str(error).strip().partition("\n")[0])
        return ensemble.generation_config
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        value, own = getattr(saved, name), getattr(ensemble.generation_config, name)
        if not are_token_ids(value, ensemble.config.vocab_size):
            logger.warning("the saved generation config has %s=%r, which is no id: %s is used", name, value, own)
            setattr(saved, name, own)
        elif not has_saved_ids and value != own:
            logger.warning("the saved generation config has %s=%r for other members: %s is used", name, value, own)
            setattr(saved, name, own)
    return without_extremes(saved, ensemble.members)


def without_extremes(config: GenerationConfig, members: Sequence[Member]) -> GenerationConfig:
    """Drops saved defaults with which one call would fill the memory or hardly end, with a warning.

    Lengths beyond the context of every member, and more than `MOST_ROWS` beams or samples. Arguments of `generate` are
    not limited.
    """
    contexts = [member.context_length for member in members]
    longest = MOST_TOKENS if None in contexts else max(length for length in contexts if length is not None)
    for names, most in ((_LENGTHS, longest), (_ROWS, MOST_ROWS)):
        for name in names:
            value: Any = getattr(config, name, None)
            if value is not None and not (isinstance(value, int) and value <= most):
                logger.warning(
                    "the saved generation config has %s=%s, above %s: it is ignored; pass %s to `generate` if it is "
                    "intended",
                    name,
                    value,
                    most,
                    name,
                )
                setattr(config, name, getattr(GenerationConfig(), name, None))
    return config
