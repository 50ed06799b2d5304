"""The grain of a union vocabulary: which byte strings an ensemble across tokenizers may write."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hf_rlae.vocabulary.token_bytes import ByteVocabulary

logger = logging.getLogger(__name__)

AUTO_GRAIN, TOKEN, CHARACTER, BYTE, COMMON = "auto", "token", "character", "byte", "common"
GRAINS = (TOKEN, CHARACTER, BYTE, COMMON)
"""`"token"`: the tokens of all members. `"character"`: single characters. `"byte"`: single bytes. `"common"`: the
tokens that every member has, and single bytes."""


def choose_grain(needs_common_strings: bool) -> str:
    """The grain that `EnsembleConfig(grain="auto")` stands for; logged at the level INFO.

    Tokens, which are cheapest, and in mixtures predict texts about as well as characters; characters for mixings that
    tokens do not allow, such as a product of experts.

    Source: ours; measured, see "Across tokenizers" in docs/benchmarks.md.

    Args:
        needs_common_strings (`bool`): whether the mixing needs strings that every member can write.
    """
    grain = CHARACTER if needs_common_strings else TOKEN
    logger.info("grain='auto' is grain=%r here", grain)
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
