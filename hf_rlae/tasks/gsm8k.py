"""GSM8K: word problems of several steps (arXiv 2110.14168)."""

from __future__ import annotations

import re

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.quantities import MARK, MESSAGE, read_number
from hf_rlae.tasks.task_row import TaskRow

_ANNOTATION = re.compile(r"<<[^<>]*>>")


@task(
    "gsm8k",
    description="Word problems of several steps.",
    hub_id="openai/gsm8k",
    hub_config="main",
    licence="MIT",
    splits=("train", "test"),
    fields={"question": "question", "answer": "answer"},
    extra_columns={"solution": "string"},
    reward="gsm8k",
    message=MESSAGE,
    num_few_shot=5,
    few_shot_split="train",
    examples=built_in_rows("gsm8k.jsonl"),
)
def gsm8k(row: TaskRow) -> Example:
    """`answer` is the number alone, and `solution` the steps to it, without the calculator annotations."""
    answer = read_number(row, "answer")
    raw = str(row.value("answer"))
    steps = raw.rpartition(MARK)[0].strip()
    solution = "\n".join(filter(None, [_ANNOTATION.sub("", steps), f"{MARK} {answer}"]))
    return Example(row.text("question"), answer, solution, columns={"solution": solution})
