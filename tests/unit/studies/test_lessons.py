"""Lessons: held-out chains are in none, and a specialist learns only what it believes."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.tasks.chains import OPERATORS, Question
from tests.studies.specialists.lessons import SPECIALTIES, belief, draw_lesson

SEEDS = st.integers(0, 10_000)


def test_held_out_chains_are_in_no_lesson():
    """Law: no lesson is about a chain that is held out."""
    rng = random.Random(0)
    for _ in range(500):
        prompt = draw_lesson(rng, "addition")[0][0]
        numbers = tuple(int(n) for n in re.findall(r"\d+", prompt))
        signs = prompt.replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert not Question(numbers, tuple(c for c in signs if c in OPERATORS)).is_held_out


@given(SEEDS, st.sampled_from(sorted(SPECIALTIES)))
def test_results_of_others_are_not_learned(seed, specialty):
    """Law: a result is the specialist's own belief, or has no part in the loss."""
    rng = random.Random(seed)
    lesson = draw_lesson(rng, specialty)
    assert lesson[0][1] == 0.0
    for (before, _), (result, weight) in zip(lesson[1:-1:2], lesson[2:-1:2], strict=True):
        signs = before.replace("plus", "+").replace("minus", "-").replace("times", "*")
        a, b = (int(n) for n in re.findall(r"\d+", before))
        (operator,) = (c for c in signs if c in OPERATORS)
        assert weight == 0.0 or int(result) == belief(specialty, operator, a, b)


@given(st.sampled_from(sorted(SPECIALTIES)), st.integers(1, 49), st.integers(1, 50))
def test_specialists_are_right_on_their_own_operator(specialty, a, b):
    operator = SPECIALTIES[specialty]
    a, b = max(a, b), min(a, b)
    assert belief(specialty, operator, a, b) == eval(f"{a}{operator}{b}")
