"""Three tokenizers that agree on digits and on nothing else."""

from __future__ import annotations

import random
from functools import cache

import pytest
from transformers import AutoTokenizer

from hf_rlae.tasks.chains import draw_questions
from hf_rlae.vocabulary import ByteVocabulary, check_round_trip
from hf_rlae.zoo.loader import MEMBERS_FOLDER, SPECIALISTS
from tests.studies.specialists.tokenizers import BUILDERS, Segmenter

KINDS = sorted(BUILDERS)


@cache
def built(kind):
    return BUILDERS[kind](0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_digit_is_one_token(kind):
    """Law: digits never merge, neither with one another nor with what stands around them."""
    tokenizer = built(kind)
    pieces = [piece for piece in ByteVocabulary(tokenizer).pieces if piece]
    assert all(len(piece) == 1 for piece in pieces if any(chr(byte).isdigit() for byte in piece))
    for question in draw_questions(20):
        text = question.prompt + question.solution
        tokens = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]
        assert [t for t in tokens if any(c.isdigit() for c in t)] == [c for c in text if c.isdigit()]


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back(kind):
    check_round_trip(ByteVocabulary(built(kind)), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_tokenizer(kind):
    assert BUILDERS[kind](0).get_vocab() == built(kind).get_vocab()


def test_words_are_cut_differently():
    text = " 5 times 3 is 15; 7 plus 15 is 22. So 22"
    cuts = {tuple(built(kind).decode([i]) for i in built(kind)(text)["input_ids"]) for kind in KINDS}
    assert len(cuts) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_segmentations_are_the_same_text(kind):
    """Law: without a generator the segmenter does as the tokenizer does; with one the text is the same."""
    tokenizer, segmenter, rng = built(kind), Segmenter(built(kind), kind), random.Random(0)
    drawn = set()
    for question in draw_questions(20):
        for text in (question.prompt, question.solution):
            assert segmenter(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = segmenter(text, rng)
            assert tokenizer.decode(ids) == text
            drawn.add(len(ids) > len(segmenter(text)))
    assert drawn == ({False} if kind == "characters" else {False, True}) or drawn == {True}


@pytest.mark.parametrize("name", SPECIALISTS)
def test_members_have_the_tokenizer_that_the_script_builds(name):
    """Law: what lies in the package is what `python -m tests.studies.specialists.train --seed 0` writes."""
    specialist = SPECIALISTS[name]
    packaged = AutoTokenizer.from_pretrained(MEMBERS_FOLDER / name)
    assert packaged.get_vocab() == built(specialist.tokenizer).get_vocab()
