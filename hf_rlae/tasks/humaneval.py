"""HumanEval: Python functions to complete from signature and docstring (arXiv 2107.03374), and tasks of its form."""

from __future__ import annotations

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow


@task(
    "humaneval",
    description="Python functions to complete, which must pass their tests.",
    hub_id="openai/openai_humaneval",
    hub_config="openai_humaneval",
    licence="MIT",
    splits=("test",),
    fields={
        "question": "prompt",
        "solution": "canonical_solution",
        "test": "test",
        "entry_point": "entry_point",
    },
    optional_fields=("solution",),
    extra_columns={"starter_code": "string", "test": "string", "entry_point": "string"},
    reward="humaneval",
    message="Complete this program, and answer with all of it in a code block.\n\n```python\n{question}\n```",
    text="{question}",
    examples=built_in_rows("humaneval.jsonl"),
)
def humaneval(row: TaskRow) -> Example:
    """`answer` is the reference completion; `starter_code` is the prompt as it is in the source, with its whitespace.

    `test` defines `check(candidate)`, which is called with the function that `entry_point` names.
    """
    question, test, name = row.text("question"), row.text("test"), row.text("entry_point")
    if not name.isidentifier():
        raise row.error("entry_point", f"{row.quote(name)} is not the name of a function")
    if "def check" not in test:
        raise row.error("test", "the text does not define check(candidate)")
    row.optional_text("solution")
    solution = (row.value("solution") or "").strip("\r\n")  # indentation stays
    starter = row.value("question")
    columns = {"starter_code": starter, "test": test, "entry_point": name}
    return Example(question, solution, f"```python\n{question}\n{solution}\n```", columns=columns)
