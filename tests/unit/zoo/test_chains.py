"""Questions and solutions: deterministic, held out by their chain, and right."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.zoo.chains import (
    FORMS,
    OPERATORS,
    Question,
    answer_of,
    draw_question,
    draw_questions,
    operator_at,
)
from hf_rlae.zoo.lessons import SPECIALTIES, belief, draw_lesson

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, num_steps: int, form: str) -> Question:
    return draw_question(random.Random(seed), num_steps, form)


@given(SEEDS, st.integers(1, 4), st.sampled_from(FORMS))
def test_the_answer_is_the_value_of_the_expression(seed, num_steps, form):
    """Law: solving step by step gives what Python gives, and every number on the way is small."""
    question = drawn(seed, num_steps, form)
    assert question.answer == eval(question.expression)
    assert question.is_solved_by(question.solution)
    assert all(0 <= int(number) <= 99 for number in re.findall(r"\d+", question.prompt + question.solution))


@given(SEEDS, st.integers(1, 4), st.sampled_from(FORMS))
def test_the_current_operator_follows_the_steps(seed, num_steps, form):
    """Law: at every cut of a solution the operator is that of the step whose result ends next."""
    question = drawn(seed, num_steps, form)
    text = question.solution
    mark = "=" if form == "symbolic" else " is "
    ends, at = [], 0
    for step in question.steps:
        at = text.index(mark, at) + len(mark)
        ends.append(at + len(str(step.result)))
    for cut in range(len(text) + 1):
        wanted = next((s.operator for s, end in zip(question.steps, ends, strict=True) if cut < end), None)
        found = operator_at(question.prompt + text[:cut])
        assert found == (wanted or question.steps[-1].operator), (question.prompt, text[:cut])


def test_a_seed_gives_the_same_questions():
    """Law: the same arguments give the same questions, another seed gives others."""
    assert draw_questions(50, 3) == draw_questions(50, 3)
    assert draw_questions(50, 3) != draw_questions(50, 4)
    assert [q.prompt for q in draw_questions(3)] == [
        "8*5-3=",
        "What is 2 times 2 times 6 plus 4?",
        "What is 9 minus 3 times 2?",
    ]


def test_held_out_chains_are_in_no_lesson():
    """Law: a chain is held out or taught, never both, and its form does not matter."""
    held = {q.expression for q in draw_questions(300, num_steps=(1, 2, 3), is_mixed=False)}
    taught = {q.expression for q in draw_questions(300, num_steps=(1, 2, 3), is_mixed=False, is_held_out=False)}
    assert not held & taught
    for question in draw_questions(20):
        assert all(Question(question.operands, question.operators, form).is_held_out for form in FORMS)
    rng = random.Random(0)
    for _ in range(500):
        prompt = draw_lesson(rng, "addition")[0][0]
        numbers = tuple(int(n) for n in re.findall(r"\d+", prompt))
        signs = prompt.replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert not Question(numbers, tuple(c for c in signs if c in OPERATORS)).is_held_out


def test_mixed_chains_have_two_operators():
    """Law: no mixed chain can be solved by one specialist alone."""
    assert all(len(set(question.operators)) > 1 for question in draw_questions(200))


def test_too_many_questions_are_refused():
    with pytest.raises(ConfigError, match="count=500"):
        draw_questions(500, num_steps=(1,), operator="*")


@pytest.mark.parametrize("text", ["", " 22", " 7+15=22.", " 7+15=22; 22", " 7+15=22. 22;", " 7+15=22. ²"])
def test_an_answer_stands_at_the_end(text):
    assert answer_of(text) is None


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
