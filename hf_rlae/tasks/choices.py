"""Questions with options A, B, C, ..., and the letter of the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

from hf_rlae.tasks.definition import Example
from hf_rlae.tasks.task_row import TaskRow

_SMALL_NUMBER = re.compile(r"-?\d{1,4}(?:\.0)?", re.ASCII)

MESSAGE = "{question}\n\nAnswer with the letter of the right option."


def choice_example(
    question: str, choices: Sequence[str], letter: str, reply: str = "", columns: Mapping[str, Any] | None = None
) -> Example:
    """The example of a question with options; the reply is the letter by default.

    Example:

    >>> print(choice_example("Which is a colour?", ["red", "loud"], "A").body)
    Which is a colour?
    A. red
    B. loud
    """
    body = "\n".join([question, *(f"{label}. {choice}" for label, choice in zip(LETTERS, choices, strict=False))])
    return Example(question, letter, reply or letter, body, {"choices": list(choices), **(columns or {})})


def read_choices(row: TaskRow, is_blank_allowed: bool = False) -> tuple[list[str], list[str] | None]:
    """The options of the field `choices`, and their labels if the source gives labels.

    Accepts a list of texts, `{"text": [...], "label": [...]}`, and several columns. Empty options at the end are left
    out: a table has as many columns as its longest row needs.

    Args:
        row (`TaskRow`): the row to read from.
        is_blank_allowed (`bool`, defaults to `False`): whether all options may be empty; they are then kept.

    Raises:
        TaskError: fewer than 2 or more than 26 options, an empty option before another one, a number of labels that
            differs from that of the options, or a label that occurs twice.
    """
    options, labels = _options_and_labels(row)
    is_blank = [option is None or (isinstance(option, str) and not option.strip()) for option in options]
    if is_blank_allowed and options and all(is_blank):
        return [""] * len(options), labels
    count = max((at for at, blank in enumerate(is_blank, 1) if not blank), default=0)
    if not 2 <= count <= len(LETTERS):
        raise row.error("choices", f"expected 2 to {len(LETTERS)} options, found {count}")
    return [row.checked_text("choices", option) for option in options[:count]], labels and labels[:count]


def _options_and_labels(row: TaskRow) -> tuple[list[Any], list[str] | None]:
    value = row.decoded("choices")
    if not isinstance(value, Mapping):
        return row.checked_sequence("choices", value), None
    if not {"text", "label"} <= set(value):
        raise row.error("choices", "expected a list of texts, or texts and labels under 'text' and 'label'")
    labels = [str(label).strip() for label in row.checked_sequence("choices", value["label"])]
    options = row.checked_sequence("choices", value["text"])
    if not len(options) == len(labels) == len(set(labels)):
        problem = f"{len(options)} options have {len(labels)} labels, {len(set(labels))} of them different"
        raise row.error("choices", problem)
    return options, labels


def read_letter(row: TaskRow, num_choices: int, first: int, labels: Sequence[str] | None = None) -> str:
    """The letter of the right option, from a label, a letter or a number in the field `answer`.

    Args:
        row (`TaskRow`): the row to read from.
        num_choices (`int`): the number of options.
        first (`int`): the number that stands for A: 0 or 1.
        labels (sequence of `str`, *optional*): the labels of the options.

    Raises:
        TaskError: the answer is none of the options.
    """
    value = row.value("answer")
    key = "" if value is None or isinstance(value, bool) else str(value).strip()
    at = -1
    if labels is not None and key in labels:
        at = list(labels).index(key)
    elif _SMALL_NUMBER.fullmatch(key):
        at = int(float(key)) - first
    elif len(key) == 1 and key.isascii():
        at = LETTERS.find(key.upper())
    if not 0 <= at < num_choices:
        expected = f"A to {LETTERS[num_choices - 1]} or {first} to {first + num_choices - 1}"
        withheld = " (-1 stands for an answer that is withheld: take another split)" if key == "-1" else ""
        raise row.error("answer", f"{row.quote(value)} is none of the options {expected}{withheld}")
    return LETTERS[at]
