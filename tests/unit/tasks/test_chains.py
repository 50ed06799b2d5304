"""Questions and solutions: deterministic, held out by their chain, and right."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.tasks.chains import (
    FORMS,
    SPLITS,
    Question,
    answer_of,
    draw_question,
    draw_questions,
    operator_at,
)

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, num_steps: int, form: str) -> Question:
    return draw_question(random.Random(seed), num_steps, form)


@given(SEEDS, st.integers(1, 4), st.sampled_from(FORMS))
def test_the_answer_is_the_value_of_the_expression(seed, num_steps, form):
    """Solving step by step gives the same value as Python, and every intermediate result is small."""
    question = drawn(seed, num_steps, form)
    assert question.answer == eval(question.expression)
    assert question.is_solved_by(question.solution)
    assert all(0 <= int(number) <= 99 for number in re.findall(r"\d+", question.prompt + question.solution))


@given(SEEDS, st.integers(1, 4), st.sampled_from(FORMS))
def test_the_current_operator_follows_the_steps(seed, num_steps, form):
    """At every cut of a solution, the operator is that of the step whose result is completed next."""
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
    """The same arguments give the same questions; another seed gives others."""
    assert draw_questions(50, 3) == draw_questions(50, 3)
    assert draw_questions(50, 3) != draw_questions(50, 4)
    assert [q.prompt for q in draw_questions(3)] == [
        "8*5-3=",
        "What is 2 times 2 times 6 plus 4?",
        "What is 9 minus 3 times 2?",
    ]


def test_held_out_chains_are_not_taught():
    """A chain is either held out or taught, whatever its form."""
    held = {q.expression for q in draw_questions(300, num_steps=(1, 2, 3), is_mixed=False)}
    taught = {q.expression for q in draw_questions(300, num_steps=(1, 2, 3), is_mixed=False, splits=("train",))}
    assert not held & taught
    for question in draw_questions(20):
        assert all(Question(question.operands, question.operators, form).is_held_out for form in FORMS)


def test_mixed_chains_have_two_operators():
    """No mixed chain can be solved by one specialist alone."""
    assert all(len(set(question.operators)) > 1 for question in draw_questions(200))


def test_too_many_questions_are_refused():
    with pytest.raises(ConfigError, match="count=500"):
        draw_questions(500, num_steps=(1,), operators=("*",))


@pytest.mark.parametrize("text", ["", " 22", " 7+15=22.", " 7+15=22; 22", " 7+15=22. 22;", " 7+15=22. ²"])
def test_an_answer_stands_at_the_end(text):
    assert answer_of(text) is None


@given(SEEDS, st.integers(13, 60), st.sampled_from(FORMS))
def test_long_chains(seed, num_steps, form):
    """Chains that are drawn step by step are valid too, and use every operator."""
    question = drawn(seed, num_steps, form)
    assert len(question.operators) == num_steps
    assert question.is_valid
    assert question.answer == eval(question.expression)


def test_splits():
    """One chain in eight is held out, half of these for validation; a split can be requested."""
    questions = [drawn(seed, 3, "symbolic") for seed in range(4000)]
    counts = {split: sum(question.split == split for question in questions) for split in SPLITS}
    assert counts["train"] == sum(not question.is_held_out for question in questions)
    assert 150 < counts["validation"] < 350
    assert 150 < counts["test"] < 350
    for split in SPLITS:
        assert {question.split for question in draw_questions(30, splits=(split,))} == {split}
