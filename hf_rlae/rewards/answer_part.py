"""Finds the part of a completion that rules grade.

1. *Reasoning* does not count. Only what follows the last closed block is graded, `<think> 11? No. </think> 12` as
   ` 12`. A completion whose prompt opened the block holds only the closing delimiter; what follows it counts. A
   block that is never closed has no answer after it, so the completion is wrong.
2. *An invented next question* does not count, and nothing behind it. Models that continue a few-shot prompt answer,
   and then write another question and its answer. A line begins one if it consists of, or begins with, "Question",
   "Problem", "Exercise", "Task", "Goal", "Instruction", "Human", "User" or "Q" and a colon, with a number or marks as
   in `**Question 2:**` or `### Problem`, and if something that does not end in a colon precedes it. So do the ends of
   turns in common chat formats, such as `<|im_end|>`.
3. *An answer tag* comes before all other markers: if there is one, only the content of the last one is graded,
   `<answer>12</answer>` as `12`. Without its closing tag, it reaches to the end.

Delimiters are compared without case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hf_rlae.errors import ConfigError

Delimiters = Sequence[tuple[str, str]]

REASONING_DELIMITERS: Delimiters = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<|think|>", "<|/think|>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|thinking|>", "</|thinking|>"),
    ("<|start_thinking|>", "<|end_thinking|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[think]", "[/think]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What begins and ends reasoning in the completions of common models."""

ANSWER_DELIMITERS: Delimiters = (
    ("<answer>", "</answer>"),
    ("<final_answer>", "</final_answer>"),
    ("<final-answer>", "</final-answer>"),
    ("<solution>", "</solution>"),
    ("<response>", "</response>"),
    ("<result>", "</result>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
"""Tags around an answer."""

_MOST_QUESTIONS = 64
# the questions of this package's tasks, and those of common few-shot and chat formats
_QUESTION_WORDS = ("question", "problem", "exercise", "task:", "goal:", "instruction", "human", "user", "q:", "\nq")
_TURN_ENDS = (
    ("im_end", "<|im_end|>"),
    ("eot_id", "<|eot_id|>"),
    ("endof", "<|endoftext|>"),
    ("end_of", "<end_of_turn>"),
    ("user", "<|user|>"),
    ("inst", "[inst]"),
)
_LINE_START = re.compile(r"\n[ \t>*_#`]*(?:(?:next|new|another|follow-up|similar|sample)[ ])?\Z", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n\s*\n[ \t>*_#`]*\Z")
_LABEL_END = re.compile(
    r"s?(?:[ ]?(?:#|no\.)?[ ]?(?P<number>\d{1,4}))?[*_`]{0,3}[ \t]*(?:[:：]|\n|\Z|(?(number)[.)](?=\s)|(?!)))"
)


@dataclass(frozen=True)
class Graded:
    """The part of a completion that is graded.

    Attributes:
        text (`str`): the part.
        is_marked (`bool`): whether it is the content of an answer tag, on one line.
    """

    text: str
    is_marked: bool = False


def graded_part(
    text: str,
    reasoning_delimiters: Delimiters = REASONING_DELIMITERS,
    answer_delimiters: Delimiters = ANSWER_DELIMITERS,
    prompt_opens_reasoning: bool = False,
    has_answer: bool = True,
) -> Graded | None:
    """The part of a completion that is graded, by the rules of this module.

    Args:
        text (`str`): any string.
        reasoning_delimiters, answer_delimiters (sequence of pairs, in lower case): what begins and ends a block.
        prompt_opens_reasoning (`bool`, defaults to `False`): whether the completion begins inside reasoning.
        has_answer (`bool`, defaults to `True`): whether a next question and answer tags are looked for.

    Returns:
        `Graded` or `None`: `None` if the reasoning never ends.

    Example:

    >>> graded_part("<think>11?</think> It is <answer>12</answer>."), graded_part("<think>Maybe 12? Let me")
    (Graded(text='12', is_marked=True), None)
    """
    folded = _folded(text)
    start = _reasoning_end(folded, _present(folded, reasoning_delimiters), prompt_opens_reasoning)
    if start is None:
        return None
    if not has_answer:
        return Graded(text[start:])
    end = _next_question(folded, start)
    return _tagged(text, folded, start, end, _present(folded, answer_delimiters)) or Graded(text[start:end])


@cache
def _by_sign(delimiters: Delimiters) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Delimiters by their first character and a word in both of each pair: most texts lack the one or the other."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for opening, closing in sorted(delimiters, key=lambda pair: len(pair[0])):
        words = [word for word in re.findall(r"[a-z]+", opening) if word in closing]
        word = max(words, key=len, default="")
        first = opening[0] if opening[0] == closing[0] else ""
        known = [other for start, other in found if start == first and other and other in word]
        found.setdefault((first, known[0] if known else word), []).append((opening, closing))
    return found


def _present(folded: str, delimiters: Delimiters) -> list[tuple[str, str]]:
    """The delimiters that may be in a text."""
    groups = _by_sign(tuple(delimiters)).items()
    return [pair for (first, word), pairs in groups if first in folded and word in folded for pair in pairs]


def _folded(text: str) -> str:
    """The text in lower case, of the same length."""
    return text.replace("İ", "I").lower()  # the only character that lower() makes longer


def _reasoning_end(folded: str, delimiters: Delimiters, is_open: bool) -> int | None:
    closed: dict[str, int] = {}
    for opening, closing in delimiters:
        at = folded.rfind(closing)
        closed[opening] = max(closed.get(opening, 0), at + len(closing) if at >= 0 else 0)
    if any(folded.rfind(opening) >= end for opening, end in closed.items()):
        return None
    start = max(closed.values(), default=0)
    return None if is_open and not start else start


def _next_question(folded: str, start: int) -> int:
    """Where the first line begins that asks a new question; the end of the text if there is none."""
    end = len(folded)
    for word, turn_end in _TURN_ENDS if "<" in folded or "[" in folded else ():
        at = folded.find(turn_end, start, end) if word in folded else -1
        end = at if at > start else end
    for word in _QUESTION_WORDS if "\n" in folded else ():
        at = start - 1
        for _ in range(_MOST_QUESTIONS):
            at = folded.find(word, at + 1, end)
            if at < 0:
                break
            line = _question_line(folded, start, at + word.startswith("\n"), at + len(word.rstrip(":")))
            if line is not None:
                end = line
                break
    return end


def _question_line(folded: str, start: int, at: int, label_end: int) -> int | None:
    """Where the line begins if the word at this place begins a new question."""
    line = _LINE_START.search(folded, max(start, at - 24), at)
    label = _LABEL_END.match(folded, label_end) if line else None
    if line is None or label is None:
        return None
    if label["number"] and folded[at:label_end] in ("human", "user"):
        return None
    is_quarter = (
        folded[at:label_end] == "q" and label["number"] and not _BLANK_LINE.search(folded, max(start, at - 24), at)
    )
    before = folded[max(start, line.start() - 80) : line.start()].rstrip(" \t\r\n*_`")
    return None if is_quarter or not before or before.endswith((":", "：")) else line.start()


def _tagged(text: str, folded: str, start: int, end: int, delimiters: Delimiters) -> Graded | None:
    opened = [(folded.rfind(opening, start, end), opening, closing) for opening, closing in delimiters]
    at, opening, closing = max(opened, default=(-1, "", ""))
    if at >= 0:
        begin = at + len(opening)
        closed = folded.find(closing, begin, end)
        stop = end if closed < 0 else closed
    else:  # the prompt may have opened the tag
        begin, stop = start, max((folded.rfind(closing, start, end) for _, closing in delimiters), default=-1)
        if stop < 0:
            return None
    content = text[begin:stop].strip()
    return Graded(content, is_marked=at >= 0 and "\n" not in content)


def check_delimiters(name: str, given: Any) -> Delimiters:
    """The delimiters in lower case.

    Args:
        name (`str`): the argument's name, for messages.
        given: what should be pairs of different, non-empty strings.

    Raises:
        ConfigError: it is something else.

    Example:

    >>> check_delimiters("answer_delimiters", [("<Answer>", "</Answer>")])
    (('<answer>', '</answer>'),)
    """
    pairs = tuple(map(_pair, given)) if isinstance(given, Sequence) and not isinstance(given, str) else (None,)
    found = [pair for pair in pairs if pair is not None]
    if len(found) != len(pairs):
        raise ConfigError(
            f"{name}={given!r:.120}: expected pairs of what begins and what ends a block, such as "
            f'[("<think>", "</think>")]; [] if there are no such blocks'
        )
    return tuple(found)


def _pair(given: Any) -> tuple[str, str] | None:
    is_pair = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
    if not is_pair or not all(isinstance(each, str) and each.strip() for each in given) or given[0] == given[1]:
        return None
    return _folded(given[0]), _folded(given[1])
