"""Errors as one line."""

from __future__ import annotations

import itertools

MAX_CHARACTERS = 400


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def shortened(text: str) -> str:
    """A text of another package without line breaks, cut after 400 characters."""
    joined = one_line(text)
    return joined if len(joined) <= MAX_CHARACTERS else f"{joined[:MAX_CHARACTERS]} ..."


def with_type(error: BaseException, text: str) -> str:
    """A message after the type of its error; the type alone if there is no message."""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_sentence(error: BaseException) -> str:
    """What an error of another package says: its first line, with those that a colon announces, as a sentence.

    Example:

    >>> first_sentence(ValueError("Bad field 'size':\\n    ValueError: 3 is odd\\nSee the manual"))
    "Bad field 'size': ValueError: 3 is odd."
    >>> first_sentence(KeyError("added_tokens"))
    "KeyError: 'added_tokens'."
    """
    lines = [line.strip() for line in str(error).strip().splitlines()]
    announced = list(itertools.takewhile(lambda line: line.endswith(":"), lines))
    text = shortened(" ".join(lines[: len(announced) + 1]))
    if not isinstance(error, OSError | ValueError) or not text:  # the messages of other types are meant for programmers
        text = with_type(error, text)
    return text if text.endswith((".", "!", "?")) else f"{text}."
