"""PIQA: which of two ways reaches a goal in the physical world (arXiv 1911.11641)."""

from __future__ import annotations

from hf_rlae.tasks.choices import choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow


@task(
    "piqa",
    description="Which of two ways reaches an everyday goal.",
    hub_id="baber/piqa",
    splits=("train", "validation", "test"),
    fields={"question": "goal", "choices": (("sol1", "sol2"), "choices"), "answer": ("label", "answer")},
    extra_columns={"choices": ["string"]},
    reward="piqa",
    message="{question}\n\nAnswer with the letter of the better way to reach the goal.",
    text="Goal: {question}\nAnswer:",
    num_few_shot=5,
    few_shot_split="train",
    examples=built_in_rows("piqa.jsonl"),
)
def piqa(row: TaskRow) -> Example:
    """The label is 0 or 1."""
    choices, labels = read_choices(row)
    letter = read_letter(row, len(choices), first=0, labels=labels)
    return choice_example(row.text("question"), choices, letter)
