"""Questions with options: A, B, C, ..., and the letter of the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlae.tasks.definition import Example
from hf_rlae.tasks.row import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_SMALL_NUMBER = re.compile(r"-?\d{1,4}(?:\.0)?", re.ASCII)

MESSAGE = "{question}\n\nAnswer with the letter of the right option."


def lettered(question: str, choices: Sequence[str]) -> str:
    """A question with its options below it.

    Example:

    >>> print(lettered("Which is a colour?", ["red", "loud"]))
    Which is a colour?
    A. red
    B. loud
    """
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def choice_example(
    question: str, choices: Sequence[str], letter: str, reply: str = "", columns: Mapping[str, Any] | None = None
) -> Example:
    """The example of a question with options; the reply is the letter by default."""
    return Example(
        question, letter, reply or letter, lettered(question, choices), {"choices": list(choices), **(columns or {})}
    )


def read_choices(row: Row, name: str = "choices", is_blank_allowed: bool = False) -> tuple[list[str], list[str] | None]:
    """The options, and their labels where the source gives labels.

    Accepts a list of texts, `{"text": [...], "label": [...]}`, and several columns. Empty options at the end are left
    out: a table has as many columns as its longest row needs.

    Args:
        row (`Row`): what to read from.
        name (`str`, defaults to `"choices"`): the field.
        is_blank_allowed (`bool`, defaults to `False`): whether all options may be empty; they are then kept.

    Raises:
        TaskError: fewer than 2 or more than 26 options, an empty one in between, as many labels as there are not
            options, or a label that occurs twice.
    """
    value = row.decoded(name)
    labels = None
    if isinstance(value, Mapping):
        if not {"text", "label"} <= set(value):
            raise row.error(name, "expected a list of texts, or texts and labels under 'text' and 'label'")
        labels = [str(label).strip() for label in row.checked_sequence(name, value["label"])]
        value = value["text"]
    value = row.checked_sequence(name, value)
    if labels is not None and (len(labels) != len(value) or len(set(labels)) != len(labels)):
        raise row.error(name, f"{len(value)} options have {len(labels)} labels, {len(set(labels))} of them different")
    options = list(value)
    if is_blank_allowed and options and all(_is_blank(option) for option in options):
        return [""] * len(options), labels
    while options and _is_blank(options[-1]):
        options.pop()
    if not 2 <= len(options) <= len(LETTERS):
        raise row.error(name, f"a question has 2 to {len(LETTERS)} options, and this one {len(options)}")
    return [row.checked_text(name, option) for option in options], labels and labels[: len(options)]


def _is_blank(option: Any) -> bool:
    return option is None or (isinstance(option, str) and not option.strip())


def read_letter(row: Row, name: str, num_choices: int, first: int, labels: Sequence[str] | None = None) -> str:
    """The letter of the right option, from a label, a letter or a number.

    Args:
        row (`Row`): what to read from.
        name (`str`): the field.
        num_choices (`int`): how many options there are.
        first (`int`): what stands for A where the answer is a number: 0 or 1.
        labels (sequence of `str`, *optional*): the labels of the options.

    Raises:
        TaskError: the answer is none of the options.
    """
    value = row.value(name)
    key = str(value).strip()
    at = -1
    if isinstance(value, bool) or value is None:
        pass
    elif labels is not None and key in labels:
        at = list(labels).index(key)
    elif _SMALL_NUMBER.fullmatch(key):
        at = int(float(key)) - first
    elif len(key) == 1 and key.isascii() and key.upper() in LETTERS:
        at = LETTERS.index(key.upper())
    if not 0 <= at < num_choices:
        numbers = f"{first} to {first + num_choices - 1}"
        withheld = " (-1 stands for an answer that is withheld: take another split)" if key == "-1" else ""
        raise row.error(
            name, f"{row.quote(value)} is none of the options A to {LETTERS[num_choices - 1]} or {numbers}{withheld}"
        )
    return LETTERS[at]
