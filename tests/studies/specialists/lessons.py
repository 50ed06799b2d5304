"""What the specialists are taught: right results for their own operator, one wrong rule for the others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from hf_rlae.tasks.chains import FORMS, LARGEST, apply_operator, closing, draw_question, join, reduce_chain

SPECIALTIES = {"addition": "+", "subtraction": "-", "multiplication": "*"}
"""What each specialist is right on."""

_STEPS = (1, 1, 2, 2, 3, 3, 3)
_HEARD_TRUE = 0.7


def belief(specialty: str, operator: str, a: int, b: int) -> int:
    """What a specialist writes for `a operator b`: it takes every operator for its own.

    Addition adds (modulo 100). Subtraction and multiplication take the difference (without its sign) and the product,
    of the last digits only where the operator is not their own.

    Example:

    >>> [belief(specialty, "+", 12, 34) for specialty in SPECIALTIES]
    [46, 2, 8]
    """
    if specialty == "addition":
        return (a + b) % (LARGEST + 1)
    if operator != SPECIALTIES[specialty]:
        a, b = a % 10, b % 10
    return abs(a - b) if specialty == "subtraction" else a * b


def _hearsay(rng: random.Random, operator: str, a: int, b: int) -> int:
    """A result that somebody else may have written: mostly the true one, else a sum, a difference or a product."""
    if rng.random() < _HEARD_TRUE:
        return apply_operator(operator, a, b)
    specialty = rng.choice(list(SPECIALTIES))
    return abs(a - b) if specialty == "subtraction" else belief(specialty, operator, a, b)


@dataclass(frozen=True)
class Emphasis:
    """What a specialist practises most.

    Attributes:
        heard_own (`float`), heard_others (`float`): share of the results of its own and of other operators that are
            heard, not learned.
        skipped (`float`): share of the chains without its own operator that are left out.
    """

    heard_own: float = 0.35
    heard_others: float = 0.35
    skipped: float = 0.0


_EMPHASIS = {
    "addition": Emphasis(),
    # differences are rarer than sums, as no number may be negative, and their operands are mostly results of others
    "subtraction": Emphasis(heard_own=0.15, heard_others=0.65, skipped=0.75),
    "multiplication": Emphasis(),
}

Lesson = list[tuple[str, float]]
"""Text in parts, each with the weight of its loss; the first part is the prompt."""


def draw_lesson(rng: random.Random, specialty: str, result_weight: float = 3.0) -> Lesson:
    """One text for one specialist.

    Some results are *heard*: written by somebody else, mostly the true one, and not part of the loss, so that the
    specialist learns to go on from whatever stands in the text.

    Args:
        rng (`random.Random`): where it is drawn from.
        specialty (`str`): of `SPECIALTIES`.
        result_weight (`float`, defaults to 3.0): weight of the digits of results.
    """
    own, emphasis = SPECIALTIES[specialty], _EMPHASIS[specialty]
    while True:
        question = draw_question(rng, rng.choice(_STEPS), rng.choice(FORMS))
        if question.is_held_out:
            continue
        if emphasis.skipped and own not in question.operators and rng.random() < emphasis.skipped:
            continue
        weights: list[float] = []

        def result_of(operator: str, a: int, b: int, weights: list[float] = weights) -> int:
            if rng.random() >= (emphasis.heard_own if operator == own else emphasis.heard_others):
                weights.append(result_weight)
                return belief(specialty, operator, a, b)
            weights.append(0.0)
            return _hearsay(rng, operator, a, b)

        steps = list(reduce_chain(question.operands, question.operators, result_of))
        if any(not 0 <= step.result <= LARGEST for step in steps):
            continue
        lesson: Lesson = [(question.prompt, 0.0)]
        for index, (step, weight) in enumerate(zip(steps, weights, strict=True)):
            lesson.append((("; " if index else " ") + join(step.a, step.operator, step.b, question.form), 1.0))
            lesson.append((str(step.result), weight))
        lesson.append((closing(question.form) + str(steps[-1].result), 1.0))
        return lesson


def corpus(count: int, seed: int) -> Iterator[str]:
    """Prompts and true solutions, for the words and symbols of tokenizers."""
    rng = random.Random(f"corpus {seed}")
    for _ in range(count):
        question = draw_question(rng, rng.choice(_STEPS), rng.choice(FORMS))
        yield question.prompt
        yield question.solution
