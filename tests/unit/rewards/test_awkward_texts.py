"""Awkward completions, graded as a careful human would. Each row of the tables has its reason."""

from __future__ import annotations

import random

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


PIECES = [
    *(
        "12",
        "1.5 million",
        "minus ",
        "- ",
        "$",
        "\\frac{1}2",
        "1,\\!000",
        "12 000",
        "3 hours and 20 minutes",
        "\\sqrt{",
        "2x",
    ),
    *("B", "(A)", "A) the heart\n", "option ", "So ", " is correct", " is wrong", "not ", "the liver", "'B'", "Paris"),
    *(
        "U.S.A.",
        "C++",
        "It's ",
        ", the capital",
        "? No, ",
        ". Wait, ",
        "The answer is ",
        '{"answer": "',
        '"}',
        "answer",
    ),
    *(
        "\\boxed{",
        "\\text{",
        "}",
        "#### ",
        "=",
        ">>",
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\nQuestion: ",
        "\nQ2: ",
    ),
    *(
        "\n",
        " ",
        ".",
        ",",
        "or ",
        "and ",
        "because ",
        "**",
        "```",
        "\u00ad",
        "\u2212",
        "ﷺ",
        "İ",
        "\ud800",
        "\0",
        "٣",
        "½",
        "!",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["number", "letter", "triviaqa", "story_sentiment"])
def test_rules_never_raise(rule):
    """6,500 random texts for each rule: a reward from 0 to 1, the same one twice."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 30))) for _ in range(6_500)]
    columns = {
        "answer": ["B" if rule == "letter" else "12"] * len(texts),
        "choices": [awkward_letters.OPTIONS] * len(texts),
    }
    rewards = get_reward(rule)(completions=texts, **columns)
    assert all(0 <= reward <= 1 for reward in rewards)
    assert rewards == get_reward(rule)(completions=texts, **columns)
    assert len(set(rewards)) > 1
