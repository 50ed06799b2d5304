"""How many bytes of text a tokenizer's tokens have on average."""

from __future__ import annotations

from hf_rlae.vocabulary.token_bytes import ByteVocabulary

PROBE = b"""\
The old man walked down to the river early in the morning. "Where is the boat?" he asked, but nobody could tell him.
His daughter had sold it in March, together with 3 nets and 12 oars, because they needed money for a new roof.
So they sat by the water, ate bread with cheese, and watched the birds until it was time to go home. In other parts of
the country, people often believe that such a decision would be difficult; however, it's usually quite simple.

At 7:45 the train from Boston had 148 passengers.

def mean(values):
    return sum(values) / len(values)
"""
"""English prose, with some numbers and code."""


def bytes_per_token(vocabulary: ByteVocabulary) -> float:
    r"""The mean length of the tokens with which a tokenizer writes `PROBE`; takes about a millisecond.

    Args:
        vocabulary (`ByteVocabulary`): the tokenizer's tokens. Characters that it has no token for do not count.

    Returns:
        `float`: bytes per token; 1.0 if the tokenizer can write nothing of the probe.

    Example:

    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    >>> backend = Tokenizer(models.BPE(letters, merges=[]))
    >>> bytes_per_token(ByteVocabulary(PreTrainedTokenizerFast(tokenizer_object=backend)))
    1.0
    """
    ids = vocabulary.text_ids(PROBE)
    return len(vocabulary.to_bytes(ids)) / len(ids) if ids else 1.0
