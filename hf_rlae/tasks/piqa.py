"""PIQA: which of two ways reaches a goal in the physical world (arXiv 1911.11641)."""

from __future__ import annotations

from hf_rlae.tasks.choices import choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, rows_of, task
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = rows_of(
    ("goal", "sol1", "sol2", "label"),
    ("Keep soup warm until lunch.", "Pour it into a closed thermos flask.", "Pour it onto a flat cold plate.", 0),
    ("Dry a wet towel.", "Put it into a plastic bag and close it.", "Hang it on a line in the sun.", 1),
    ("Hang a picture on a wall.", "Hit the nail with a pillow.", "Hit the nail with a hammer.", 1),
    (
        "Open a jar with a tight lid.",
        "Hold the lid under hot water for a while, then twist.",
        "Hold the jar in the freezer overnight, then shake.",
        0,
    ),
    ("Get crumbs out of a keyboard.", "Turn it upside down and tap it.", "Rinse it under the tap.", 0),
)


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
    examples=_EXAMPLES,
)
def piqa(row: TaskRow) -> Example:
    """The label is 0 or 1."""
    choices, labels = read_choices(row)
    letter = read_letter(row, len(choices), first=0, labels=labels)
    return choice_example(row.text("question"), choices, letter)
