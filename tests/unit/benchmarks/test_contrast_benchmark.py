"""How `tests.benchmarks.contrast` counts."""

from __future__ import annotations

import math

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, Member
from tests.benchmarks.contrast import bits_per_byte, completions_of, echoed, repeated, words_of
from tests.support.models import constant, pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four five", 0),
        ("a b c d a b c d", 1),
        ("a a a a a a", 2),
        ("", 0),
    ],
)
def test_runs_of_four_words_that_are_repeated(text, expected):
    assert repeated(words_of(text)) == expected


def test_longer_words_of_an_opening_that_come_back():
    assert echoed("A little girl named Lily", "The Girl was LITTLE.") == 0.5
    assert echoed("A cat", "A cat") == 0.0


def test_bits_per_byte_of_a_member_that_expects_every_byte_alike():
    tokenizer = raw_bytes()
    judge = Member(*constant(torch.zeros(len(tokenizer)), tokenizer))
    found = bits_per_byte(judge, ["Once", "a"], [" upon", " b"])
    assert found == pytest.approx(math.log2(len(tokenizer)), rel=1e-5)


def test_completions_begin_after_their_openings():
    model, tokenizer = pair(tokenizer=byte_level_bpe())
    ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)] * 2, mixing="contrast", end_token_ids=[[], []])
    openings = ["Once upon a time", "The 3 big"]
    texts = completions_of(ensemble, openings, 5, do_sample=False)
    ids = tokenizer(openings[1], return_tensors="pt")["input_ids"]
    alone = ensemble.generate(ids, max_new_tokens=5, do_sample=False)
    assert texts[1] == tokenizer.decode(alone[0, -5:], skip_special_tokens=True)
    assert len(texts) == 2
