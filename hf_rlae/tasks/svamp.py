"""SVAMP: short word problems with varied structure (arXiv 2103.07191)."""

from __future__ import annotations

import re

from hf_rlae.tasks.definition import Example, rows_of, task
from hf_rlae.tasks.quantities import MARK, MESSAGE, read_number
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = rows_of(
    ("Body", "Question", "Equation", "Answer"),
    ("Lea has 12 stamps. She gives 5 of them to Tom.", "How many stamps has Lea now?", "( 12.0 - 5.0 )", 7.0),
    ("Lea has 12 stamps. She gives 5 of them to Tom.", "How many stamps did Tom get?", "5.0", 5.0),
    (
        "There are 8 boxes with 9 pencils in each. If 3 of the boxes are red",
        "How many pencils are there in all?",
        "( 8.0 * 9.0 )",
        72.0,
    ),
    ("A farmer has 14 hens and 6 more ducks than hens.", "How many ducks has the farmer?", "( 14.0 + 6.0 )", 20.0),
    ("36 children form teams of 4.", "How many teams are there?", "( 36.0 / 4.0 )", 9.0),
)


@task(
    "svamp",
    description="Short word problems in many variations; needs a source.",
    licence="MIT",
    splits=("train", "test"),
    fields={
        "question": ("Question", "question", "question_concat"),
        "answer": ("Answer", "answer"),
        "body": ("Body", "body"),
        "equation": ("Equation", "equation"),
    },
    optional_fields=("body", "equation"),
    extra_columns={"solution": "string"},
    reward="svamp",
    message=MESSAGE,
    num_few_shot=5,
    few_shot_split="train",
    examples=_EXAMPLES,
)
def svamp(row: TaskRow) -> Example:
    """The question follows its body; `solution` is the equation with its answer."""
    body, question, answer = row.optional_text("body"), row.text("question"), read_number(row, "answer")
    equation = re.sub(r"(\d)\.0\b", r"\1", row.optional_text("equation"), flags=re.ASCII)
    steps = f"{equation} = {answer}\n" if any(sign in equation for sign in "+-*/") else ""
    solution = f"{steps}{MARK} {answer}"
    if body:
        question = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else ','} {question}"
    return Example(question, answer, solution, columns={"solution": solution})
