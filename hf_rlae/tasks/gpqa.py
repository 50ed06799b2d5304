"""GPQA: questions that experts wrote to be hard to look up (arXiv 2311.12022).

The authors ask that no question be published in plain text. So the examples here are not from GPQA, and no message
quotes a value of a row.
"""

from __future__ import annotations

import random

from hf_rlae.tasks.choices import LETTERS, choice_example
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow


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
    examples=built_in_rows("gpqa.jsonl"),
)
def gpqa(row: TaskRow) -> Example:
    """The right option comes first in the source, so the options are shuffled by the seed and the question."""
    question, correct = row.text("question"), row.text("correct")
    choices = [correct, *row.texts("incorrect")]
    order = list(range(len(choices)))
    rng = random.Random(f"options of gpqa {row.seed} {question}")  # noqa: S311 (repeatable draws, no secrets)
    rng.shuffle(order)
    letter = LETTERS[order.index(0)]
    return choice_example(question, [choices[at] for at in order], letter, reply=f"Answer: {letter}")
