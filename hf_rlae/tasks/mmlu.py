"""MMLU: questions with four options from 57 subjects (arXiv 2009.03300)."""

from __future__ import annotations

from hf_rlae.tasks.choices import MESSAGE, choice_example, read_choices, read_letter
from hf_rlae.tasks.definition import Example, rows_of, task
from hf_rlae.tasks.task_row import TaskRow

_EXAMPLES = rows_of(
    ("question", "subject", "choices", "answer"),
    ("What is the derivative of x^2 at x = 3?", "high_school_mathematics", ["3", "6", "9", "2"], 1),
    ("Which organ pumps blood through the body?", "anatomy", ["The liver", "The lung", "The kidney", "The heart"], 3),
    (
        "Which gas do green plants take up when they make sugar in the light?",
        "high_school_biology",
        ["Carbon dioxide", "Oxygen", "Nitrogen", "Helium"],
        0,
    ),
    (
        "If the price of a good rises and nothing else changes, the quantity demanded usually",
        "high_school_microeconomics",
        ["rises", "stays the same", "falls", "doubles"],
        2,
    ),
    ("How many bits are in one byte today?", "high_school_computer_science", ["4", "8", "16", "32"], 1),
)


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
    examples=_EXAMPLES,
)
def mmlu(row: TaskRow) -> Example:
    """The answer is a number from 0, or a letter. Shots have the same subject."""
    choices, labels = read_choices(row)
    letter = read_letter(row, len(choices), first=0, labels=labels)
    return choice_example(row.text("question"), choices, letter, columns={"subject": row.optional_text("subject")})
