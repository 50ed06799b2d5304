"""The grain of a union vocabulary: which byte strings an ensemble across tokenizers may write."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hf_rlae.vocabulary.bytes_per_token import bytes_per_token
from hf_rlae.vocabulary.token_bytes import ByteVocabulary

logger = logging.getLogger(__name__)

AUTO_GRAIN, TOKEN, CHARACTER, BYTE, COMMON = "auto", "token", "character", "byte", "common"
GRAINS = (TOKEN, CHARACTER, BYTE, COMMON)
"""`"token"`: the tokens of all members. `"character"`: single characters. `"byte"`: single bytes. `"common"`: the
tokens that every member has, and single bytes."""


SHORT_TOKENS = 1.4
"""Below this many bytes per token, a member writes hardly more with a token than with a character."""

UNEVEN_TOKENS = 2.0
"""From this ratio of their bytes per token on, the members' tokens count as uneven."""


def choose_grain(vocabularies: Sequence[ByteVocabulary], names: Sequence[str], is_product: bool) -> str:
    """The grain that `EnsembleConfig(grain="auto")` stands for; logged at the level INFO.

    Tokens are cheapest, but a member with short tokens has to win many draws where one with long tokens wins one. So
    characters are chosen where tokens are short or uneven, and tokens where they are alike.

    Source: ours; the limits are measured, see "Across tokenizers" in docs/benchmarks.md.

    Args:
        vocabularies (`Sequence[ByteVocabulary]`): one per member.
        names (`Sequence[str]`): the members' names, for the log.
        is_product (`bool`): whether the members are mixed as a product of experts, which tokens do not allow.
    """
    lengths = [bytes_per_token(vocabulary) for vocabulary in vocabularies]
    is_token = not is_product and min(lengths) >= SHORT_TOKENS and max(lengths) < UNEVEN_TOKENS * min(lengths)
    grain = TOKEN if is_token else CHARACTER
    shown = ", ".join(f"{name} {length:.2f}" for name, length in zip(names, lengths, strict=True))
    logger.info("grain='auto' is grain=%r here; bytes per token: %s", grain, shown)
    return grain


def grain_strings(vocabularies: Sequence[ByteVocabulary], grain: str) -> set[bytes]:
    """The byte strings that may be written.

    Single bytes belong to every grain but `"token"`, because tokens can begin and end inside a character.

    Args:
        vocabularies (`Sequence[ByteVocabulary]`): one per tokenizer.
        grain (`str`): one of `GRAINS`.
    """
    pieces = set().union(*(vocabulary.ids_of for vocabulary in vocabularies))
    if grain == TOKEN:
        return pieces
    found = {bytes([byte]) for byte in set().union(*pieces)}
    if grain == CHARACTER:
        characters = {char for piece in pieces for char in piece.decode("utf-8", "ignore")}
        found |= {char.encode() for char in characters}
    elif grain == COMMON:
        found |= set(vocabularies[0].ids_of).intersection(*(vocabulary.ids_of for vocabulary in vocabularies[1:]))
    return found
