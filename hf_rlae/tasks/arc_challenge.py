"""ARC-Challenge: science questions from school with three to five options (arXiv 1803.05457)."""

from __future__ import annotations

from dataclasses import replace

from hf_rlae.checks import check_choice
from hf_rlae.tasks.choices import MESSAGE, choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow


@task(
    "arc_challenge",
    description="Science questions from school, three to five options.",
    hub_id="allenai/ai2_arc",
    hub_config="ARC-Challenge",
    licence="CC BY-SA 4.0",
    splits=("train", "validation", "test"),
    fields={
        "question": "question",
        "choices": ("choices", ("A", "B", "C", "D", "E"), ("A", "B", "C", "D")),
        "answer": ("answerKey", "answer"),
    },
    extra_columns={"choices": ["string"]},
    reward="arc_challenge",
    message=MESSAGE,
    num_few_shot=5,
    few_shot_split="train",
    examples=built_in_rows("arc_challenge.jsonl"),
    options={"blank_options": "keep"},
)
def arc_challenge(row: TaskRow) -> Example | None:
    """The answer is a label of an option, a letter, or a number from 1.

    In one copy of the dataset, some rows lost the texts of all their options. They are kept with a warning, because
    their letters are right and published results count them; `blank_options="drop"` leaves them out. They are never
    shots.
    """
    blank_options = row.options["blank_options"]
    check_choice("blank_options", blank_options, ("keep", "drop"))
    choices, labels = read_choices(row, is_blank_allowed=True)
    letter = read_letter(row, len(choices), first=1, labels=labels)
    example = choice_example(row.text("question"), choices, letter)
    if any(choices):
        return example
    if blank_options == "drop":
        return None
    row.note('have no text in any of their options; blank_options="drop" leaves them out')
    return replace(example, reply="")
