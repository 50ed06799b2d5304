"""MMLU: questions with four options from 57 subjects (arXiv 2009.03300)."""

from __future__ import annotations

from hf_rlae.tasks.choices import MESSAGE, choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow


@task(
    "mmlu",
    description="Questions with four options from 57 subjects.",
    hub_id="cais/mmlu",
    hub_config="all",
    licence="MIT",
    splits=("test", "validation", "dev", "auxiliary_train"),
    fields={
        "question": "question",
        "choices": ("choices", ("A", "B", "C", "D")),
        "answer": "answer",
        "subject": "subject",
    },
    optional_fields=("subject",),
    extra_columns={"choices": ["string"], "subject": "string"},
    reward="mmlu",
    message=MESSAGE,
    num_few_shot=5,
    few_shot_split="dev",
    few_shot_group="subject",
    examples=built_in_rows("mmlu.jsonl"),
)
def mmlu(row: TaskRow) -> Example:
    """The answer is a number from 0, or a letter. Shots have the same subject."""
    choices, labels = read_choices(row)
    letter = read_letter(row, len(choices), first=0, labels=labels)
    return choice_example(row.text("question"), choices, letter, columns={"subject": row.optional_text("subject")})
