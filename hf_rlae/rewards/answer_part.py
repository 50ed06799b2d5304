"""Finds the part of a completion that rules grade.

1. *Reasoning* does not count. Only what follows the last closed block is graded, `<think> 11? No. </think> 12` as
   ` 12`. A completion whose prompt opened the block holds only the closing delimiter; what follows it counts. A
   block that is never closed has no answer after it, so the completion is wrong.
2. *An invented next question* does not count, and nothing behind it. Models that continue a few-shot prompt answer,
   and then write another question and its answer. A line begins one if it consists of, or begins with, "Question",
   "Problem", "Exercise", "Task", "Goal", "Instruction", "Human", "User" or "Q" and a colon, with a number or marks as
   in `**Question 2:**`, `### Problem`, `[Question]` or `<question>`; so does "Example 2:", and, after an empty line,
   "Input:" with "Output:" in the next line. Only lines in the first 20,000 characters after the reasoning count, and
   only if an *answer* may stand before them: something that the rule could read, between the line and such a line
   before it (`AnswerRule.may_answer`), and that does not end in a colon. Otherwise the line repeats the question. A
   numbered line after another one of its kind that is no next question is a part ("Problem 1: ...", "Problem 2: ...").
   The ends of turns in common chat formats, such as `<|im_end|>`, end the answer as well.
3. *An answer tag* comes before all other markers: if there is one, only the content of the last one is graded,
   `<answer>12</answer>` as `12`. Without its closing tag, it reaches to the end.

Delimiters are compared without case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
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

_QUESTION_REACH = 20_000
_MOST_QUESTIONS = 64
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<|user|>", "[inst]")
# the questions of this package's tasks, and those of common few-shot and chat formats; in text without capitals
_LABEL = re.compile(
    r"""
    \n [ \t>*_#`<\[]{0,12}+ (?:(?:next|new|another|follow-up|similar|sample)[ ])?
    (?: (?P<word> question|problem|exercise|instruction|human|user
                | (?P<no_heading> task|goal|q | example(?=[ ]?\#?[ ]?\d) | input(?=:[^\n]{0,400}+\n{1,2}output:) ))
    s? (?:[ ]?(?:\#|no\.)?[ ]?(?P<number>\d{1,4}))? [*_`]{0,3} [ \t]*
    (?: [:：>\]] | (?(no_heading)(?!)|(?:(?=\n)|\Z)) | (?(number)[.)](?=\s)|(?!)) )
    )
    """,
    re.VERBOSE,
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
    is_answer: Callable[[str], bool] | None = bool,
) -> Graded | None:
    """The part of a completion that is graded, by the rules of this module.

    Args:
        text (`str`): any string.
        reasoning_delimiters, answer_delimiters (sequence of pairs, in lower case): what begins and ends a block.
        prompt_opens_reasoning (`bool`, defaults to `False`): whether the completion begins inside reasoning.
        is_answer (`Callable`, *optional*): whether a text may hold an answer, so that a question behind it is a next
            one; any text by default. With `None`, neither a next question nor answer tags are looked for.

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
    if is_answer is None:
        return Graded(text[start:])
    end = _next_question(text, folded, start, is_answer)
    return _tagged(text, folded, start, end, _present(folded, answer_delimiters)) or Graded(text[start:end])


@lru_cache(maxsize=64)
def _by_sign(delimiters: Delimiters) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """Delimiters by their first character, then by a word in both of a pair: most texts lack the one or the other."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for opening, closing in sorted(delimiters, key=lambda pair: len(pair[0])):
        words = [word for word in re.findall(r"[a-z]+", opening) if word in closing]
        word = max(words, key=len, default="")
        by_word = found.setdefault(opening[0] if opening[0] == closing[0] else "", {})
        known = next((other for other in by_word if other and other in word), word)
        by_word.setdefault(known, []).append((opening, closing))
    return {sign: list(by_word.items()) for sign, by_word in found.items()}


def _present(folded: str, delimiters: Delimiters) -> list[tuple[str, str]]:
    """The delimiters that may be in a text."""
    found: list[tuple[str, str]] = []
    for sign, words in _by_sign(tuple(delimiters)).items():
        if sign in folded:
            for word, pairs in words:
                if word in folded:
                    found += pairs
    return found


def _folded(text: str) -> str:
    """The text in lower case, of the same length."""
    return text.replace("İ", "I").lower()  # the only character that lower() makes longer


def _reasoning_end(folded: str, delimiters: Delimiters, is_open: bool) -> int | None:
    if not delimiters:
        return None if is_open else 0
    closed: dict[str, int] = {}
    for opening, closing in delimiters:
        at = folded.rfind(closing)
        closed[opening] = max(closed.get(opening, 0), at + len(closing) if at >= 0 else 0)
    if any(folded.rfind(opening) >= end for opening, end in closed.items()):
        return None
    start = max(closed.values(), default=0)
    return None if is_open and not start else start


def _next_question(text: str, folded: str, start: int, is_answer: Callable[[str], bool]) -> int:
    """Where the first line begins that asks a new question; the end of the text if there is none."""
    end = len(folded)
    for turn_end in _TURN_ENDS if "<|" in folded or "[inst]" in folded or "<end_of" in folded else ():
        at = folded.find(turn_end, start, end)
        end = at if at > start else end
    seen = start
    parts = set()
    for label in islice(_LABEL.finditer(folded, start, min(end, start + _QUESTION_REACH)), _MOST_QUESTIONS):
        word, number, line = label["word"], label["number"], label.start()
        before = folded[max(start, line - 80) : line].rstrip(" \t\r*_`")
        is_apart = before.endswith("\n")
        before = before.rstrip(" \t\r\n*_`")
        if (number and word in ("human", "user")) or (not is_apart and (word == "input" or (word == "q" and number))):
            continue
        if seen == start and (first := _LABEL.match(f"\n{folded[start : start + 40].lstrip()}")) and first["number"]:
            parts.add(first["word"])
        is_new = not (number and (word in parts or (word == "example" and number == "1")))
        if is_new and before and not before.endswith((":", "：")) and is_answer(text[seen:line]):
            return line
        parts |= {word} if number else set()
        seen = label.end()
    return end


def _tagged(text: str, folded: str, start: int, end: int, delimiters: Delimiters) -> Graded | None:
    if not delimiters:
        return None
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
