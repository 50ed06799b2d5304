"""PIQA: which of two ways reaches a goal in the physical world (arXiv 1911.11641)."""

from __future__ import annotations

from hf_rlae.tasks.choices import choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = (
    {
        "goal": "Keep soup warm until lunch.",
        "sol1": "Pour it into a closed thermos flask.",
        "sol2": "Pour it onto a flat cold plate.",
        "label": 0,
    },
    {
        "goal": "Dry a wet towel.",
        "sol1": "Put it into a plastic bag and close it.",
        "sol2": "Hang it on a line in the sun.",
        "label": 1,
    },
    {
        "goal": "Hang a picture on a wall.",
        "sol1": "Hit the nail with a pillow.",
        "sol2": "Hit the nail with a hammer.",
        "label": 1,
    },
    {
        "goal": "Open a jar with a tight lid.",
        "sol1": "Hold the lid under hot water for a while, then twist.",
        "sol2": "Hold the jar in the freezer overnight, then shake.",
        "label": 0,
    },
    {
        "goal": "Get crumbs out of a keyboard.",
        "sol1": "Turn it upside down and tap it.",
        "sol2": "Rinse it under the tap.",
        "label": 0,
    },
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
