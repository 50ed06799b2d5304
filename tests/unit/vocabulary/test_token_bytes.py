"""Laws of canonical bytes: the bytes of encoded text equal the text, for tokenizers of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary import ByteVocabulary, check_round_trip
from hf_rlae.vocabulary.spelling import byte_level_alphabet
from hf_rlae.vocabulary.token_bytes import prefix_successor
from tests.support.tokenizers import LOSSLESS, byte_level_bpe, characters, lower_casing, sentencepiece_bpe

TEXTS = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(list("the a\t\n  é日本語😀👍🏽e\u0301\x00")),
    ),
    max_size=24,
)


@pytest.fixture(scope="module", params=sorted(LOSSLESS))
def vocabulary(request):
    return ByteVocabulary(LOSSLESS[request.param]())


def test_the_byte_table_is_a_bijection():
    table = byte_level_alphabet()
    assert sorted(table.values()) == list(range(256))
    assert table["Ġ"] == 0x20
    assert table["Ċ"] == 0x0A
    assert table["é"] == 0xE9


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_prefix_successor_bounds_a_prefix(prefix, rest):
    end = prefix_successor(prefix)
    assert end is None or prefix + rest < end
    assert end is not None or not prefix.strip(b"\xff")


def test_probe_accepts_lossless_tokenizers(vocabulary):
    check_round_trip(vocabulary, "member 0")


def test_probe_refuses_a_lower_casing_tokenizer():
    with pytest.raises(TokenizerError, match=r"member 3 loses text: it changes \['T'"):
        check_round_trip(ByteVocabulary(lower_casing()), "member 3")


def test_probe_refuses_the_real_bert(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared("data", "tokenizers", "bert_uncased"))
    with pytest.raises(TokenizerError, match="loses text"):
        check_round_trip(ByteVocabulary(tokenizer), "bert")


@settings(max_examples=200)
@given(text=TEXTS)
def test_canonical_ids_give_the_bytes_back(vocabulary, text):
    raw = text.encode()
    assert vocabulary.to_bytes(vocabulary.canonical_ids(raw)) == vocabulary.representable(raw)


@settings(max_examples=200)
@given(raw=st.binary(max_size=12))
def test_lone_bytes_survive_where_the_tokenizer_has_them(raw):
    for build in (byte_level_bpe, sentencepiece_bpe):
        vocabulary = ByteVocabulary(build())
        assert vocabulary.to_bytes(vocabulary.canonical_ids(raw)) == raw


def test_canonical_ids_equal_the_tokenizers_own_inside_a_text():
    tokenizer = byte_level_bpe()
    vocabulary = ByteVocabulary(tokenizer)
    whole = tokenizer("said, they walked", add_special_tokens=False).input_ids
    assert tuple(whole) == vocabulary.canonical_ids(b"said, they walked")


def test_the_name_of_a_special_token_is_text():
    vocabulary = ByteVocabulary(byte_level_bpe())
    ids = vocabulary.canonical_ids(b"a<|endoftext|>b")
    assert vocabulary.to_bytes(ids) == b"a<|endoftext|>b"
    assert not set(ids) & vocabulary.special_ids


def test_added_tokens_that_are_not_special_are_text():
    tokenizer = byte_level_bpe(330, "<think>")
    vocabulary = ByteVocabulary(tokenizer)
    assert vocabulary.pieces[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
    assert vocabulary.pieces[tokenizer.eos_token_id] is None


def test_characters_without_a_token_are_left_out():
    vocabulary = ByteVocabulary(characters())
    assert vocabulary.representable("a\nb Ω!".encode()) == b"ab !"
    assert vocabulary.to_bytes(vocabulary.canonical_ids(b"a\nb")) == b"ab"


def test_ids_beyond_the_tokenizer_are_not_text():
    tokenizer = byte_level_bpe()
    vocabulary = ByteVocabulary(tokenizer, len(tokenizer) + 14)
    assert vocabulary.pieces[-14:] == [None] * 14
    assert vocabulary.size == len(tokenizer) + 14


@given(st.binary(max_size=3))
def test_a_range_holds_what_begins_with_a_prefix(prefix):
    vocabulary = ByteVocabulary(byte_level_bpe())
    lo, hi = vocabulary.range_of(prefix)
    expected = {i for i, p in enumerate(vocabulary.pieces) if p and p.startswith(prefix) and len(p) > len(prefix)}
    assert set(vocabulary.sorted_ids[lo:hi]) == expected


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox_20b"])
@settings(max_examples=100)
@given(text=TEXTS)
def test_real_vocabularies(shared, name, text):
    vocabulary = _real(str(shared("data", "tokenizers", name)))
    assert vocabulary.to_bytes(vocabulary.canonical_ids(text.encode())) == text.encode()


_REAL: dict[str, ByteVocabulary] = {}


def _real(path: str) -> ByteVocabulary:
    if path not in _REAL:
        _REAL[path] = ByteVocabulary(AutoTokenizer.from_pretrained(path))
    return _REAL[path]
