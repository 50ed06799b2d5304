"""GSM8K: word problems of several steps (arXiv 2110.14168)."""

from __future__ import annotations

import re

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.quantities import MARK, MESSAGE, read_number
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = (
    {
        "question": "A tray holds 6 cups. How many cups do 3 trays hold?",
        "answer": "One tray holds 6 cups, so 3 trays hold 3 * 6 = <<3*6=18>>18 cups.\n#### 18",
    },
    {
        "question": "Mia has 20 euros. She buys 2 books for 7 euros each. How many euros are left?",
        "answer": "The books cost 2 * 7 = <<2*7=14>>14 euros.\nSo 20 - 14 = <<20-14=6>>6 euros are left.\n#### 6",
    },
    {
        "question": "A train goes 80 km in an hour. How many km does it go in 2 and a half hours?",
        "answer": "In 2 hours it goes 2 * 80 = <<2*80=160>>160 km.\nIn half an hour it goes 80 / 2 = <<80/2=40>>40.\n"
        "Together it goes 160 + 40 = <<160+40=200>>200 km.\n#### 200",
    },
    {
        "question": "There are 4 cars with 3 people each, and 2 people get off. How many people are left in the cars?",
        "answer": "There are 4 * 3 = <<4*3=12>>12 people.\nThen 12 - 2 = <<12-2=10>>10 people are left.\n#### 10",
    },
    {
        "question": "A shop sells 1,200 pens in a year and a quarter of them in June. How many are sold in June?",
        "answer": "In June it sells 1,200 / 4 = <<1200/4=300>>300 pens.\n#### 300",
    },
)

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
    examples=_EXAMPLES,
)
def gsm8k(row: TaskRow) -> Example:
    """`answer` is the number alone, and `solution` the steps to it, without the calculator annotations."""
    answer = read_number(row, "answer")
    raw = str(row.value("answer"))
    steps = raw.rpartition(MARK)[0].strip()
    solution = "\n".join(filter(None, [_ANNOTATION.sub("", steps), f"{MARK} {answer}"]))
    return Example(row.text("question"), answer, solution, columns={"solution": solution})
