"""How many bytes of text a tokenizer's tokens have."""

from __future__ import annotations

import pytest

from hf_rlae.vocabulary import ByteVocabulary, bytes_per_token
from hf_rlae.vocabulary.bytes_per_token import PROBE
from tests.support.tokenizers import byte_level_bpe, characters, raw_bytes, sentencepiece_bpe


@pytest.mark.parametrize("build", [raw_bytes, characters])  # `characters` has no token for a newline
def test_a_token_that_is_one_letter_has_one_byte(build):
    assert bytes_per_token(ByteVocabulary(build())) == 1.0


@pytest.mark.parametrize("build", [byte_level_bpe, sentencepiece_bpe])
def test_tokens_times_their_mean_length_are_the_text(build):
    tokenizer = build()
    count = len(tokenizer(PROBE.decode(), add_special_tokens=False)["input_ids"])
    spaces = tokenizer.backend_tokenizer.normalizer is not None  # a space that the tokenizer puts in front of a text
    assert bytes_per_token(ByteVocabulary(tokenizer)) * count == pytest.approx(len(PROBE) + spaces)


def test_more_merges_give_longer_tokens():
    small, large = (bytes_per_token(ByteVocabulary(byte_level_bpe(size))) for size in (270, 330))
    assert 1.0 < small < large
