"""Checks that a tokenizer does not change text, and chooses how texts are normalised."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from typing import Literal, cast

from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary.token_bytes import ByteVocabulary

logger = logging.getLogger(__name__)

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD", "NFKC", "NFKD")
"""The Unicode normalisation forms that `normalizes` can name."""

AUTO = "auto"
"""The value of `normalizes` that chooses NFC if a tokenizer normalises so, else no form."""

PROBE = "The café paid 12 €: naïve 日本語, 😀👍🏽!\n\tdef f(x):  return x\n\n  É ß"
"""Text that every tokenizer must decode to the same text, except for characters that it has no token for."""

_SEQUENCES = (
    # canonically equivalent spellings: NFC changes the first seven, NFD the next three, both the last
    *("e\u0301", "A\u030a", "\u212b", "\u2126", "\u1100\u1161\u11a8", "q\u0307\u0323", "\uf900"),
    *("\u00e9", "\u00c5", "\uac01", "x\u0301"),
    # compatibility characters: NFKC and NFKD change them
    *("\ufb01", "\u2460", "\uff21", "x\u00b2", "\u00bd", "\u2026", "\u2122", "\uff8a\uff9f"),
    # white space of all kinds
    *("\t", "\n", "\r\n", "\x0b", "\x0c", "\u00a0", "\u2003", "\u2028", "\u200b", "\u3000", "  ", " \n "),
    # what normalisers replace or delete
    *("\u2018\u2019", "\u201c\u201d", "\u2013\u2014", "``", "''", "\u00ad", "\u200d", "aA", "ß", "İ"),
)
"""Character sequences that some tokenizers change; each is read after the letter `a`."""

_EDGES = ("  a", "a  ", "\n\na\n", "\ta\t")
"""Texts whose white space at the ends some tokenizers strip."""


def changed_samples(vocabulary: ByteVocabulary, form: Form | None = None) -> dict[str, str]:
    """The samples that a tokenizer changes, with what it reads instead.

    Characters that the tokenizer has no token for are not compared, because the member skips them.

    Args:
        vocabulary (`ByteVocabulary`): the tokenizer.
        form (`str`, *optional*): the form to which the samples are normalised first.
    """
    samples = ["a" + sequence for sequence in (*dict.fromkeys(PROBE), *_SEQUENCES)]
    changed: dict[str, str] = {}
    for sample in (*samples, *_EDGES):
        text = _normalised(sample, form)
        ids = vocabulary.encode_text(text)
        is_known = all(vocabulary.pieces[i] is not None for i in ids)
        has_spaces = text.count(" ") <= vocabulary.to_bytes(ids).count(b" ")
        if is_known and not (has_spaces and vocabulary.spells(ids, text)):
            read = vocabulary.to_bytes(ids).decode("utf-8", "replace").removeprefix(" ")
            changed[sample.removeprefix("a")] = read.removeprefix("a")
    kept = vocabulary.representable(_normalised(PROBE, form).encode()).decode()
    if not changed and not vocabulary.spells(ids := vocabulary.encode_text(kept), kept):
        changed[kept] = vocabulary.to_bytes(ids).decode("utf-8", "replace")
    return changed


def _normalised(text: str, form: Form | None) -> str:
    return text if form is None else unicodedata.normalize(form, text)


def check_round_trip(vocabulary: ByteVocabulary, name: str, form: Form | None = None) -> None:
    """Checks that encoding does not change text that is in the Unicode form `form`.

    Args:
        vocabulary (`ByteVocabulary`): the tokenizer.
        name (`str`): the member's name, for the message.
        form (`str`, *optional*): the form to which texts are normalised before they are encoded.

    Raises:
        TokenizerError: the tokenizer changes text.
    """
    changed = changed_samples(vocabulary, form)
    if not changed:
        return
    example = next(iter(changed))
    samples = ", ".join(map(ascii, list(changed)[:6]))
    after = "" if form is None else f" in the form {form}"
    fitting = next((other for other in FORMS if other != form and not changed_samples(vocabulary, other)), None)
    fix = (
        f"pass normalizes={fitting!r} to normalise the texts of all members to {fitting}, as this tokenizer does"
        if fitting
        else "use a cased tokenizer that keeps white space (byte-level BPE, SentencePiece, characters)"
    )
    raise TokenizerError(
        f"the tokenizer of {name} loses text{after}: it changes [{samples}] (it reads {example!a} as "
        f"{changed[example]!a}). Members with different tokenizers must read the same text; {fix}"
    )


def choose_normalization(
    option: str | None, vocabularies: Sequence[ByteVocabulary], names: Sequence[str]
) -> Form | None:
    """The Unicode form to which the prompts of all members are normalised; checks every tokenizer.

    Args:
        option (`str`, *optional*): `normalizes` of [`EnsembleConfig`].
        vocabularies (`Sequence[ByteVocabulary]`), names (`Sequence[str]`): the tokenizers and their members.

    Returns:
        `str` or `None`: one of `FORMS`, or `None` if texts are not normalised.

    Raises:
        TokenizerError: a tokenizer changes text in the chosen form.
    """
    form = cast(Form | None, None if option == AUTO else option)
    known: list[ByteVocabulary] = []
    for vocabulary, name in zip(vocabularies, names, strict=True):
        if any(vocabulary is other for other in known):
            continue
        known.append(vocabulary)
        if option == AUTO and form is None and changed_samples(vocabulary) and not changed_samples(vocabulary, "NFC"):
            form = "NFC"
            logger.info(
                "the tokenizer of member %s normalises text to NFC (composed characters), so the prompts of all "
                "members are normalised to NFC; pass normalizes=None to refuse such tokenizers",
                name,
            )
    for vocabulary, name in zip(vocabularies, names, strict=True):
        check_round_trip(vocabulary, name, form)
    return form
