"""Laws of the union vocabulary and of alignments onto it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary, same_vocabulary
from tests.support.tokenizers import LOSSLESS, byte_level_bpe, characters, sentencepiece_bpe

CPU = torch.device("cpu")
KINDS = sorted(LOSSLESS)


@pytest.fixture(scope="module")
def vocabularies():
    return [ByteVocabulary(LOSSLESS[kind]()) for kind in KINDS]


@pytest.fixture(scope="module")
def union(vocabularies):
    return UnionVocabulary(vocabularies)


def test_the_first_member_keeps_its_ids(vocabularies, union):
    assert union.pieces[: vocabularies[0].size] == vocabularies[0].pieces
    assert union.stop_id == union.size - 1
    assert union.pieces[union.stop_id] is None


def test_every_byte_string_has_one_place(vocabularies, union):
    strings = {piece for vocabulary in vocabularies for piece in vocabulary.ids_of}
    assert set(union.id_of) == strings
    assert all(union.pieces[i] == piece for piece, i in union.id_of.items())


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_all_text_mass_arrives_and_special_mass_does_not(vocabularies, union, index):
    vocabulary = vocabularies[index]
    ends = [max(vocabulary.special_ids)]
    alignment = Alignment(vocabulary, union, ends)
    probs = torch.rand(vocabulary.size, dtype=torch.float64)
    mixed = torch.cat([probs, probs.new_zeros(1)])[alignment.gather]
    mixed.index_add_(0, alignment.extra_to, probs[alignment.extra_from])
    expected = torch.zeros(union.size, dtype=torch.float64)
    for i, piece in enumerate(vocabulary.pieces):
        if piece:
            expected[union.id_of[piece]] += probs[i]
    expected[union.stop_id] = probs[ends].sum()
    torch.testing.assert_close(mixed, expected)


def test_stop_sums_all_end_ids(vocabularies):
    tokenizer = byte_level_bpe()
    vocabulary = ByteVocabulary(tokenizer)
    union = UnionVocabulary([vocabulary])
    newline = vocabulary.ids_of[b"\n"][0]
    alignment = Alignment(vocabulary, union, [tokenizer.eos_token_id, newline])
    probs = torch.zeros(vocabulary.size)
    probs[tokenizer.eos_token_id], probs[newline] = 0.25, 0.5
    mixed = torch.cat([probs, probs.new_zeros(1)])[alignment.gather]
    mixed.index_add_(0, alignment.extra_to, probs[alignment.extra_from])
    assert mixed[union.stop_id] == 0.75
    assert mixed.sum() == 0.75


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=4))
def test_tail_maps_are_whole_or_the_longest_prefix(tail):
    vocabularies = [ByteVocabulary(byte_level_bpe()), ByteVocabulary(characters())]
    union = UnionVocabulary(vocabularies)
    alignment = Alignment(vocabularies[0], union, [])
    found = alignment.tail_map(tail)
    pieces = vocabularies[0].pieces
    inside = set()
    for i, target, whole in zip(found.member_ids.tolist(), found.columns.tolist(), found.whole.tolist(), strict=True):
        rest = pieces[i][len(tail) :]
        inside.add(i)
        assert pieces[i].startswith(tail)
        assert whole == (rest in union.id_of)
        assert rest.startswith(union.pieces[target])
        assert not any(rest[:n] in union.id_of for n in range(len(union.pieces[target]) + 1, len(rest) + 1))
    for i, piece in enumerate(pieces):
        if piece and piece.startswith(tail) and piece != tail and i not in inside:
            assert not any(piece[len(tail) :].startswith(known) for known in union.id_of)


def test_no_byte_in_common_is_refused():
    first, second = ByteVocabulary(characters()), ByteVocabulary(byte_level_bpe())
    second.ids_of = {b"\xfe": [0]}
    with pytest.raises(TokenizerError, match="members 0 and 1 have no byte in common"):
        UnionVocabulary([first, second])


def test_vocabularies_are_compared_not_byte_maps():
    tokenizer = sentencepiece_bpe()
    assert len(ByteVocabulary(tokenizer).ids_of) < len(tokenizer) - 3  # duplicates by byte fallback
    assert same_vocabulary(tokenizer.get_vocab(), sentencepiece_bpe().get_vocab())
    assert not same_vocabulary(tokenizer.get_vocab(), byte_level_bpe().get_vocab())


def test_end_ids_that_are_text_are_no_stays(vocabularies):
    """Law: an end id with bytes ends the text: no reading can stay in it, and it never continues a tail."""
    tokenizer = byte_level_bpe()
    vocabulary = ByteVocabulary(tokenizer)
    union = UnionVocabulary([vocabulary, *vocabularies])
    longer = next(i for piece, ids in vocabulary.ids_of.items() if len(piece) > 2 for i in ids)
    begun = vocabulary.pieces[longer][:1]
    plain, ending = (Alignment(vocabulary, union, ends) for ends in ([], [longer]))
    assert longer in plain.stays(begun).on(CPU).tolist()
    assert longer not in ending.stays(begun).on(CPU).tolist()
    assert set(plain.stays(begun).on(CPU).tolist()) - set(ending.stays(begun).on(CPU).tolist()) == {longer}
    assert longer in plain.tail_map(begun).member_ids.tolist()
    assert longer not in ending.tail_map(begun).member_ids.tolist()
