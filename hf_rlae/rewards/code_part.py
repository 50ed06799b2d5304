"""Finds the program in a completion.

1. Reasoning does not count, as for every rule (`hf_rlae.rewards.answer_part`).
2. A *fence* is a line of three or more backticks or tildes, indented or not, with or without a word behind them, and
   everything up to a line of at least as many of the same characters and nothing else. Before that, such a line with a
   word opens a fence again: the one before it was never closed.
3. The program is the content of the last complete fence. A next question that the completion invents ends it, and of
   an answer tag only the content counts, as for every rule; what stands within fences is no question and no tag.
4. Without a complete fence the text is *bare*: all of it is the program. If that is not Python, it is what stands
   before the first line of backticks (the prompt may have opened the fence), or before an invented next question.

A common indentation of all lines is removed from fences only: a bare text may continue an indented line of its prompt.
"""

from __future__ import annotations

import re
import textwrap

from hf_rlae.rewards.answer_part import ANSWER_DELIMITERS, Delimiters, graded_part

_FENCE = re.compile(r"^[ \t]*(?P<marks>`{3,}|~{3,})(?P<word>[^`\n]*)$", re.MULTILINE)
# stands for a fence while questions and tags are looked for
_PLACE = re.compile("\ue000(\\d+)\ue001")


def find_programs(text: str, answer_delimiters: Delimiters = ANSWER_DELIMITERS) -> list[str]:
    r"""The texts that may be the program of a completion without reasoning; the first that is Python is meant.

    Args:
        text (`str`): any string.
        answer_delimiters (sequence of pairs of `str`, in lower case): tags around the answer.

    Returns:
        `list[str]`: at least one.

    Example:

    >>> find_programs("Like this:\n```python\ndef one():\n    return 1\n```\nDone.")
    ['def one():\n    return 1\n']
    >>> find_programs("def one(): return 1\n```\nThat is it.")
    ['def one(): return 1\n```\nThat is it.', 'def one(): return 1\n']
    """
    fences, outline = _fences(text)
    part = graded_part(outline, (), answer_delimiters, False, _has_fence if fences else bool)
    graded = outline if part is None else part.text
    places = _PLACE.findall(graded)
    if places:
        return [fences[int(places[-1])]]
    line = _FENCE.search(graded)
    bare = [text, *([text[: line.start()]] if line else []), graded]
    return list(dict.fromkeys(bare))


def _has_fence(outline: str) -> bool:
    return _PLACE.search(outline) is not None


def _fences(text: str) -> tuple[list[str], str]:
    """The contents of all complete fences, and the text with a sign in the place of each."""
    text = text.replace("\ue000", " ")
    found: list[str] = []
    outline, end = [], 0
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        if opened is None:
            opened = line
        elif not line["marks"].startswith(opened["marks"]):
            continue
        elif line["word"].strip():
            opened = line
        else:
            outline += [text[end : opened.start()], f"\ue000{len(found)}\ue001"]
            found.append(textwrap.dedent(text[opened.end() + 1 : line.start()]))
            opened, end = None, line.end()
    return found, "".join(outline) + text[end:]
