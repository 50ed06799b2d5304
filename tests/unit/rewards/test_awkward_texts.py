"""Awkward completions, graded as a careful human would. Each row of the tables has its reason."""

from __future__ import annotations

import pytest

from hf_rlae.rewards import get_reward
from tests.unit.rewards import awkward_letters, awkward_numbers, awkward_words


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [pytest.param(*row[:3], id=f"{row[2]:g} {row[0][:40]!a} {row[3]}") for row in awkward_numbers.CASES],
)
def test_numbers(text, answer, reward):
    assert get_reward("number")(completions=[text], answer=[answer]) == [reward]


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [pytest.param(*row[:3], id=f"{row[2]:g} {row[0][:40]!a} {row[3]}") for row in awkward_letters.CASES],
)
def test_letters(text, answer, reward):
    letters = "ABCD" if reward else answer
    expected = [reward if letter == answer else 0.0 for letter in letters]
    choices = [awkward_letters.OPTIONS] * len(letters)
    assert get_reward("letter")(completions=[text] * len(letters), answer=list(letters), choices=choices) == expected


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [pytest.param(*row[:3], id=f"{row[2]:g} {row[0][:40]!a} {row[3]}") for row in awkward_words.CASES],
)
def test_words(text, answer, reward):
    assert get_reward("triviaqa")(completions=[text], answer=[answer]) == [reward]


@pytest.mark.parametrize("table", [awkward_letters.CASES, awkward_numbers.CASES, awkward_words.CASES])
def test_tables_are_long_and_have_each_text_once(table):
    assert len({row[:2] for row in table}) == len(table) > 200
