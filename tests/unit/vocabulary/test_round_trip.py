"""Which tokenizers pass the check that text survives, and how texts are normalised."""

from __future__ import annotations

import logging

import pytest
from tokenizers import AddedToken, Regex, decoders, normalizers
from transformers import AutoTokenizer

from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary import ByteVocabulary, check_round_trip, choose_normalization
from tests.support.tokenizers import byte_level_bpe, changed, lower_casing, sentencepiece_bpe, unigram


def normalising(normalizer, build=byte_level_bpe):
    """A vocabulary whose tokenizer normalises texts first."""

    def change(backend):
        known = backend.normalizer
        backend.normalizer = normalizer if known is None else normalizers.Sequence([normalizer, known])

    return ByteVocabulary(changed(build(), change))


REPLACED = {
    "NFKC": (
        normalizers.NFKC(),
        r"reads 'e\\u0301' as '\\xe9'.*normalizes='NFKC'",
    ),  # composes, and folds compatibility characters
    "NFKD": (normalizers.NFKD(), r"normalizes='NFKD'"),
    "NFD": (normalizers.NFD(), r"normalizes='NFD'"),
    "lower case": (normalizers.Lowercase(), r"reads 'T' as 't'"),
    "stripped ends": (normalizers.Strip(), r"reads ' ' as ''"),
    "double spaces": (normalizers.Replace(Regex(" {2,}"), " "), r"'  '"),
    "quotes": (normalizers.Replace("``", '"'), r"reads '``' as"),
    "no-break spaces": (normalizers.Replace("\u00a0", " "), r"\\xa0"),
    "soft hyphens": (normalizers.Replace("\u00ad", ""), r"\\xad"),
    "accents": (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), r"reads '\\xe9' as 'e'"),
    "only combining accents": (normalizers.Replace("\u0301", ""), r"loses text"),  # NFC hides it in most words
    "control characters": (normalizers.Nmt(), r"loses text"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_changes_text_is_refused(name):
    normalizer, example = REPLACED[name]
    with pytest.raises(TokenizerError, match=example) as caught:
        choose_normalization("auto", [normalising(normalizer)], ["member 3"])
    assert "the tokenizer of member 3 loses text: it changes [" in str(caught.value)


@pytest.mark.parametrize("build", [byte_level_bpe, sentencepiece_bpe])
def test_nfc_is_adopted_and_logged(build, caplog):
    plain, folding = ByteVocabulary(build()), normalising(normalizers.NFC(), build)
    with caplog.at_level(logging.INFO):
        assert choose_normalization("auto", [plain, folding], ["one", "two"]) == "NFC"
    assert "member two normalises text to NFC" in caplog.text
    assert choose_normalization("auto", [plain], ["one"]) is None


def test_without_normalisation_nfc_is_refused():
    folding = normalising(normalizers.NFC())
    with pytest.raises(TokenizerError, match=r"pass normalizes='NFC'"):
        choose_normalization(None, [folding], ["two"])
    assert choose_normalization("NFC", [folding], ["two"]) == "NFC"


@pytest.mark.parametrize("form", ["NFKC", "NFD", "NFKD"])
def test_other_forms_must_be_declared(form):
    folding = normalising(getattr(normalizers, form)())
    assert choose_normalization(form, [folding, ByteVocabulary(byte_level_bpe())], ["one", "two"]) == form
    with pytest.raises(TokenizerError, match=rf"pass normalizes='{form}'"):
        choose_normalization("NFC" if form != "NFKC" else "NFD", [folding], ["one"])


def test_two_forms_do_not_fit_together():
    vocabularies = [normalising(normalizers.NFC()), normalising(normalizers.NFD())]
    for option in ("auto", "NFC", "NFD"):
        with pytest.raises(TokenizerError, match="loses text"):
            choose_normalization(option, vocabularies, ["one", "two"])


@pytest.mark.parametrize("form", [None, "NFC", "NFKC"])
def test_lower_case_is_lost_in_every_form(form):
    with pytest.raises(TokenizerError, match="use a cased tokenizer"):
        check_round_trip(ByteVocabulary(lower_casing()), "member 0", form)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox_20b"])
def test_real_tokenizers(shared, name):
    vocabulary = ByteVocabulary(AutoTokenizer.from_pretrained(shared("data", "tokenizers", name)))
    assert choose_normalization("auto", [vocabulary], [name]) == ("NFC" if name == "gpt_neox_20b" else None)


ADDED = {
    "lstrip": AddedToken("<tok>", lstrip=True, special=False),
    "rstrip": AddedToken("<tok>", rstrip=True, special=False),
    "both": AddedToken("<tok>", lstrip=True, rstrip=True, special=False),
    "special and both": AddedToken("<tok>", lstrip=True, rstrip=True, special=True),
    "a space inside": AddedToken("<a tok>", special=False),
    "accents": AddedToken("hôtel", special=False),
    "spaces": AddedToken("    ", special=False, normalized=True),
    "spaces and lstrip": AddedToken("  ", special=False, lstrip=True),
    "spaces and rstrip": AddedToken("  ", special=False, rstrip=True),
    "a part of a word": AddedToken("og", special=False, single_word=True),
}


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("build", [byte_level_bpe, sentencepiece_bpe, unigram])
def test_added_tokens_swallow_nothing(name, build):
    """Spaces around added tokens survive; the tokens are still tokens."""
    token = ADDED[name]
    vocabulary = ByteVocabulary(changed(build(), lambda backend: backend.add_tokens([token])))
    check_round_trip(vocabulary, "member 0")
    contexts = ("a {} b", "a{}b", "! {} !", "  {}  ", "{0}{0}", "a {}b", "\n\n{} \t", "the{} dog")
    for text in (context.format(token.content) for context in contexts):
        raw = vocabulary.representable(text.encode())
        found = vocabulary.to_bytes(vocabulary.text_ids(raw))
        assert found in (raw, b" " + raw)
    if build is not unigram and not token.single_word:  # that vocabulary lacks `<`
        own = vocabulary.ids_of.get(token.content.encode(), [None])[0]
        assert (own in vocabulary.text_ids(f"a {token.content} b".encode())) == (not token.special)


def test_a_text_is_segmented_anew_only_where_the_tokenizer_changes_it():
    """A long text with one character that the tokenizer changes keeps the tokenizer's own tokens elsewhere."""
    vocabulary = ByteVocabulary(sentencepiece_bpe())  # reads `▁` as a space
    text = "Once upon a time there was a little girl. " * 20
    raw = (text + "▁" + text).encode()
    ids = vocabulary.text_ids(raw)
    assert vocabulary.to_bytes(ids) == raw
    assert len(ids) < 2 * len(vocabulary.text_ids(text.encode())) + 40


def test_names_of_specials_in_a_unigram_vocabulary_are_text():
    """A Unigram model itself finds the names of special tokens in texts, because they are pieces of it."""
    vocabulary = ByteVocabulary(changed(unigram(), lambda backend: setattr(backend, "decoder", decoders.Metaspace())))
    assert not set(vocabulary.text_ids(b"the </s> dog")) & vocabulary.special_ids


def test_long_bytes_that_are_no_text_are_segmented_fast():
    """Only the broken characters are segmented without the tokenizer: this takes milliseconds, not minutes."""
    vocabulary = ByteVocabulary(sentencepiece_bpe())
    text = b"Once upon a time there was a little girl. "
    raw = (text + b"\xe2\x82") * 500
    ids = vocabulary.text_ids(raw)
    assert vocabulary.to_bytes(ids).removeprefix(b" ") == raw
    assert len(ids) < 520 * len(vocabulary.text_ids(text)) + 2000
