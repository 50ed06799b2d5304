"""GPQA: questions that experts wrote to be hard to look up (arXiv 2311.12022).

The authors ask that no question be published in plain text. So the examples here are not from GPQA, and no message
quotes a value of a row.
"""

from __future__ import annotations

import random

from hf_rlae.tasks.choices import LETTERS, choice_example
from hf_rlae.tasks.definition import Example, rows_of, task
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = rows_of(
    ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    (
        "A photon has twice the frequency of another one. How do their energies compare?",
        "It has twice the energy",
        "It has half the energy",
        "It has four times the energy",
        "They have the same energy",
    ),
    ("How many hydrogen atoms has a molecule of benzene?", "6", "3", "8", "12"),
    (
        "In which direction does a DNA polymerase add nucleotides?",
        "From 5' to 3'",
        "From 3' to 5'",
        "In both directions",
        "It depends on the strand",
    ),
    (
        "An ideal gas shrinks to half its volume at constant temperature. What becomes of its pressure?",
        "It doubles",
        "It halves",
        "It stays the same",
        "It grows fourfold",
    ),
    (
        "What are the eigenvalues of a Hermitian matrix like?",
        "All of them are real",
        "All of them are imaginary",
        "All of them have absolute value 1",
        "All of them are positive",
    ),
)


@task(
    "gpqa",
    description="Questions of experts in biology, physics and chemistry; gated.",
    hub_id="Idavidrein/gpqa",
    hub_config="gpqa_main",
    licence="CC BY 4.0, gated",
    is_gated=True,
    splits=("train",),
    fields={
        "question": "Question",
        "correct": "Correct Answer",
        "incorrect": (("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),),
    },
    extra_columns={"choices": ["string"]},
    reward="gpqa",
    message="{question}\n\nThink step by step, and end with a line such as 'Answer: X', where X is the right letter.",
    num_few_shot=5,
    examples=_EXAMPLES,
)
def gpqa(row: TaskRow) -> Example:
    """The right option comes first in the source, so the options are shuffled by the seed and the question."""
    question, correct = row.text("question"), row.text("correct")
    choices = [correct, *row.texts("incorrect")]
    order = list(range(len(choices)))
    random.Random(f"options of gpqa {row.seed} {question}").shuffle(order)
    letter = LETTERS[order.index(0)]
    return choice_example(question, [choices[at] for at in order], letter, reply=f"Answer: {letter}")
