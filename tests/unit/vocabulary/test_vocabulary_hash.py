"""`vocabulary_hash`: equal where every id stands for the same text, and only there."""

from __future__ import annotations

import pytest

from hf_rlae.vocabulary import ByteVocabulary, vocabulary_hash
from tests.support.tokenizers import LOSSLESS, byte_level_bpe

OTHERS = {
    "two ids swapped": [None, b"b", b"a"],
    "another border between two ids": [None, b"ab", b""],
    "an id more": [None, b"a", b"b", b"c"],
    "a special token at another place": [b"a", None, b"b"],
    "text that looks like lengths": [None, b"1:a", b"b"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_vocabularies_have_other_hashes(name):
    assert vocabulary_hash(OTHERS[name]) != vocabulary_hash([None, b"a", b"b"])


def test_padding_of_the_embedding_does_not_count():
    tokenizer = byte_level_bpe()
    plain, padded = ByteVocabulary(tokenizer), ByteVocabulary(tokenizer, len(tokenizer) + 64)
    assert vocabulary_hash(plain.pieces) == vocabulary_hash(padded.pieces)


def test_every_tokenizer_has_its_own_hash():
    hashes = {vocabulary_hash(ByteVocabulary(build()).pieces) for build in LOSSLESS.values()}
    assert len(hashes) == len(LOSSLESS)
    assert all(len(found) == 64 for found in hashes)
