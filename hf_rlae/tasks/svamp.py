"""SVAMP: short word problems that vary who asks for what (arXiv 2103.07191)."""

from __future__ import annotations

import re

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.quantities import MARK, MESSAGE, read_number
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = (
    {
        "Body": "Lea has 12 stamps. She gives 5 of them to Tom.",
        "Question": "How many stamps has Lea now?",
        "Equation": "( 12.0 - 5.0 )",
        "Answer": 7.0,
    },
    {
        "Body": "Lea has 12 stamps. She gives 5 of them to Tom.",
        "Question": "How many stamps did Tom get?",
        "Equation": "5.0",
        "Answer": 5.0,
    },
    {
        "Body": "There are 8 boxes with 9 pencils in each. If 3 of the boxes are red",
        "Question": "How many pencils are there in all?",
        "Equation": "( 8.0 * 9.0 )",
        "Answer": 72.0,
    },
    {
        "Body": "A farmer has 14 hens and 6 more ducks than hens.",
        "Question": "How many ducks has the farmer?",
        "Equation": "( 14.0 + 6.0 )",
        "Answer": 20.0,
    },
    {
        "Body": "36 children form teams of 4.",
        "Question": "How many teams are there?",
        "Equation": "( 36.0 / 4.0 )",
        "Answer": 9.0,
    },
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
