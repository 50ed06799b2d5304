"""ARC-Challenge: science questions from school with three to five options (arXiv 1803.05457)."""

from __future__ import annotations

from dataclasses import replace

from hf_rlae.checks import check_choice
from hf_rlae.tasks.choices import MESSAGE, choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = (
    {
        "question": "Which of these is a source of light?",
        "choices": {"text": ["the Moon", "the Sun", "a mirror", "a window"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "question": "A puddle is gone after a warm afternoon. What happened to most of the water?",
        "choices": {"text": ["It froze.", "It melted.", "It evaporated.", "It burned."], "label": ["1", "2", "3", "4"]},
        "answerKey": "3",
    },
    {
        "question": "Which body part does a fish use to breathe under water?",
        "choices": {"text": ["gills", "scales", "fins"], "label": ["A", "B", "C"]},
        "answerKey": "A",
    },
    {
        "question": "Which tool measures how hot the water in a glass is?",
        "choices": {"text": ["a ruler", "a balance", "a clock", "a thermometer"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    },
    {
        "question": "What pulls a ball back to the ground after it was thrown up?",
        "choices": {"text": ["magnetism", "friction", "gravity", "sound"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    },
)


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
    examples=_EXAMPLES,
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
