"""The members that benchmarks train on the spot."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.vocabulary import ByteVocabulary
from tests.benchmarks.story_members import TOKENIZERS, bpe, split, story_member, unigram

LINES = [
    'One day, a girl named Lily said, "Look at the big red ball!"',
    "The little dog and the little cat ran to the big tree.",
    "They were happy, and the little girl was happy too.",
] * 10


def test_held_out_lines_were_not_learned():
    learned, held_out = split("\n".join([f"line {i}" for i in range(90)] + ["line 3", "new"] * 5))
    assert learned == [f"line {i}" for i in range(90)]
    assert held_out == ["new"] * 5


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_tokenizers_are_lossless_and_always_the_same(name):
    first, second = TOKENIZERS[name](LINES), TOKENIZERS[name](LINES)
    assert first.get_vocab() == second.get_vocab()
    vocabulary = ByteVocabulary(first)
    for line in LINES[:3]:
        assert vocabulary.to_bytes(first(line)["input_ids"]) == line.encode()


def test_only_one_tokenizer_joins_words():
    within, across = bpe(LINES, 400), bpe(LINES, 400, across_spaces=True)
    assert not any(b" " in piece[1:] for piece in ByteVocabulary(within).ids_of)
    assert any(b" " in piece.strip(b" ") for piece in ByteVocabulary(across).ids_of)


def test_unigram_has_the_size_that_was_asked_for():
    assert len(unigram(LINES, 54)) == 54
    tokens = unigram(LINES, 54).tokenize(" the little girl")
    assert tokens == ["▁the", "▁little", "▁girl"]


def test_members_are_trained_once_and_alike(tmp_path):
    corpus, lines = "\n".join(LINES * 2), []
    members = [story_member("bpe300", corpus, tmp_path / place, 3, lines.append) for place in ("a", "a", "b")]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [path.name for path in (tmp_path / "b").iterdir()]
    for other in members[1:]:
        for key, value in members[0].model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[key])
    assert members[0].name == "bpe300"
    assert members[0].end_ids == (0,)
