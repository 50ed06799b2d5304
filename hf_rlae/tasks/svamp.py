"""SVAMP: short word problems with varied structure (arXiv 2103.07191)."""

from __future__ import annotations

import re

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.quantities import MARK, MESSAGE, read_number
from hf_rlae.tasks.task_row import TaskRow


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
    examples=built_in_rows("svamp.jsonl"),
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
