"""TriviaQA without documents: quiz questions, each with several spellings of the answer (arXiv 1705.03551)."""

from __future__ import annotations

from collections.abc import Mapping

from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow

_WITHHELD = "<unk>"


@task(
    "triviaqa",
    description="Quiz questions without documents, with aliases of the answer.",
    hub_id="mandarjoshi/trivia_qa",
    hub_config="rc.nocontext",
    splits=("train", "validation", "test"),
    fields={"question": "question", "answer": "answer", "aliases": "aliases"},
    optional_fields=("aliases",),
    extra_columns={"aliases": ["string"]},
    reward="triviaqa",
    message="{question}\n\nAnswer with a name or a few words.",
    num_few_shot=5,
    few_shot_split="train",
    examples=built_in_rows("triviaqa.jsonl"),
)
def triviaqa(row: TaskRow) -> Example:
    """The answer is a mapping with `value` and `aliases`, or a text, with `aliases` in their own column.

    The column `aliases` of the dataset begins with the answer itself.
    """
    found = row.decoded("answer")
    is_apart = row.value("aliases") is not None
    aliases = row.sequence("aliases") if is_apart else []
    if isinstance(found, Mapping):
        for key in ("aliases", "normalized_aliases"):
            aliases += row.checked_sequence("answer", found.get(key) or [])
        found = found.get("value")
    else:
        found = row.value("answer")
    answer = row.checked_text("answer", found)
    if answer == _WITHHELD:
        raise row.error("answer", "the answer is withheld in this split: load another one, such as 'validation'")
    checked = [row.checked_text("aliases" if is_apart else "answer", alias) for alias in aliases]
    return Example(row.text("question"), answer, answer, columns={"aliases": list(dict.fromkeys([answer, *checked]))})
