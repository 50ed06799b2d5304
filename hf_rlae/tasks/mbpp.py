"""MBPP: short Python functions that must pass their tests (arXiv 2108.07732)."""

from __future__ import annotations

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow

_LAST_IDS = {"prompt": 10, "test": 510, "validation": 600, "train": 974}


def _split_of(row: TaskRow) -> str | None:
    """The split of a row by its number, as the authors divide their one file."""
    number = row.value("task_id")
    if isinstance(number, str) and number.isascii() and number.isdigit():
        number = int(number[:4])
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    return next((split for split, last in _LAST_IDS.items() if number <= last), None)


@task(
    "mbpp",
    description="Short Python functions that must pass their tests.",
    hub_id="google-research-datasets/mbpp",
    hub_config="full",
    licence="CC BY 4.0",
    splits=("train", "test", "validation", "prompt"),
    fields={
        "question": ("text", "prompt"),
        "code": "code",
        "tests": ("test_list", "test"),
        "setup": "test_setup_code",
        "imports": "test_imports",
        "task_id": "task_id",
    },
    optional_fields=("setup", "imports", "task_id"),
    extra_columns={"test_list": ["string"], "test_setup_code": "string"},
    reward="mbpp",
    message="{question}",
    text="Task: {question}\nPython:",
    num_few_shot=3,
    few_shot_split="prompt",
    examples=built_in_rows("mbpp.jsonl"),
    split_of=_split_of,
)
def mbpp(row: TaskRow) -> Example:
    """`answer` is the reference solution. The prompt shows the tests, because they give the function's name."""
    question, tests = row.text("question"), row.texts("tests")
    row.text("code")
    code = row.value("code").strip("\r\n")  # indentation stays
    body = "\n".join([question, "It has to pass these tests:", *tests])
    imports = [] if row.value("imports") is None else row.sequence("imports")
    setup = [*(row.checked_text("imports", line) for line in imports), row.optional_text("setup")]
    columns = {"test_list": tests, "test_setup_code": "\n".join(filter(None, setup))}
    return Example(question, code, f"```python\n{code}\n```", body, columns)
