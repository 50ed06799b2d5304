r"""Finds where a text announces its answer.

Three *markers* announce an answer:

1. a box, `\boxed{...}` or `\fbox{...}`: its field is the text between the braces, or the rest of the line if the brace
   is never closed;
2. four or more hash signs, `####`: the rest of the line;
3. the word "answer" (any case), at most four characters that are not letters, optionally "to the question" or similar,
   and then "is", "was", "are", "equals", "would be", "should be", "must be", "will be", a colon or an equals sign: the
   rest of the line, or the next line with text if the rest of this one is empty.

A field ends early where a later marker begins, and after 8,000 characters. Only the last 64 markers of each kind are
read (for the third kind, the last 64 occurrences of the word "answer").
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

LONGEST_FIELD = 8_000
MOST_MARKERS = 64

_BRACE = re.compile(r"[{}]")
_PHRASE = re.compile(
    r"(?<![A-Za-z])(?i:answer)s?\W{0,4}?(?:(?i:to|of|for)\s(?i:the|this|your)\s\w{1,20}\W{0,4}?)?"
    r"(?:(?i:is|was|are|equals|(?:would|should|must|will)\s{1,4}be)\b|[:=：])"
)
_LEAD = re.compile(r"[\s*_`:：]*+")
_SENTENCE_END = re.compile(r"[.!?。！？](?=[\s*_`\"'’”)\]}$]|\Z)")


@dataclass(frozen=True)
class Field:
    """The part of a text in which a marker announces the answer.

    Attributes:
        kind (`str`): `"box"`, `"hashes"` or `"phrase"`.
        start (`int`), end (`int`): positions in the text.
    """

    kind: str
    start: int
    end: int


def answer_fields(text: str) -> Iterator[Field]:
    r"""The fields of a text, the last one first.

    Example:

    >>> text = "The answer is 4. No:\n#### 5"
    >>> [text[field.start:field.end] for field in answer_fields(text)]
    [' 5', '4. No:']
    """
    limit = len(text)
    for marker, start, kind in heapq.merge(_boxes(text), _hashes(text), _phrases(text), reverse=True):
        if start <= limit:
            yield _field(text, kind, start, min(limit, start + LONGEST_FIELD))
        limit = marker


def _field(text: str, kind: str, start: int, limit: int) -> Field:
    if kind == "box":
        return Field(kind, start, _closing_brace(text, start, limit))
    if kind == "phrase":
        lead = _LEAD.match(text, start, limit)
        start = lead.end() if lead else start
    return Field(kind, start, _line_end(text, start, limit))


def _line_end(text: str, start: int, limit: int) -> int:
    end = text.find("\n", start, limit)
    return limit if end < 0 else end


def _closing_brace(text: str, start: int, limit: int) -> int:
    depth = 1
    for brace in islice(_BRACE.finditer(text, start, limit), MOST_MARKERS):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return _line_end(text, start, limit)


def _places(text: str, needle: str) -> Iterator[int]:
    """The positions of the last occurrences, the last one first."""
    end = len(text)
    for _ in range(MOST_MARKERS):
        end = text.rfind(needle, 0, end)
        if end < 0:
            return
        yield end


# each of the following yields where a marker begins, where its field begins, and its kind, the last one first


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    for at in _places(text, "box"):
        for word, before in (("\\boxed", 1), ("\\fbox", 2)):
            start = at - before
            if start >= 0 and text.startswith(word, start):
                brace = start + len(word)
                brace += text.startswith(" ", brace)
                if text.startswith("{", brace):
                    yield start, brace + 1, "box"


def _hashes(text: str) -> Iterator[tuple[int, int, str]]:
    return ((at, at + 4, "hashes") for at in _places(text, "####"))


def _phrases(text: str) -> Iterator[tuple[int, int, str]]:
    places = heapq.merge(_places(text, "nswer"), _places(text, "NSWER"), reverse=True)
    for at in islice(places, MOST_MARKERS):
        phrase = _PHRASE.match(text, at - 1) if at else None
        if phrase is not None:
            yield at - 1, phrase.end(), "phrase"


def sentence_end(text: str, start: int, end: int) -> int:
    """Where the first sentence of `text[start:end]` ends: before its full stop, or at `end`.

    Example:

    >>> sentence_end("It is 1.5. Really.", 0, 18)
    9
    """
    found = _SENTENCE_END.search(text, start, end)
    return end if found is None else found.start()
