r"""Where a text says what its answer is.

Three *markers* announce an answer:

1. a box, `\boxed{...}` or `\fbox{...}`: its field is what stands between the braces, or the rest of the line where
   the brace is never closed;
2. four or more hash signs, `####`: the rest of the line;
3. the word "answer" (any case), at most four characters that are no letters, if you like "to the question" or the
   like, and then "is", "was", "are", "equals", "would be", "should be", "must be", "will be", a colon or an equals
   sign: the rest of the line, or the next line with text where the rest of this one is empty.

A field ends early where a later marker begins, and is read to 8,000 characters at most. Of every kind of marker the
last 64 are looked at (of the third, the last 64 of the word "answer").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
        start (`int`), end (`int`): characters of the text.
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
    kinds = [_boxes(text), _hashes(text), _phrases(text)]
    nearest = [next(kind, None) for kind in kinds]
    limit = len(text)
    while True:
        found = [(place[0], index) for index, place in enumerate(nearest) if place is not None]
        if not found:
            return
        _, index = max(found)
        place = nearest[index]
        assert place is not None
        at, start = place
        if start <= limit:
            yield _field(text, ("box", "hashes", "phrase")[index], start, min(limit, start + LONGEST_FIELD))
        limit = at
        nearest[index] = next(kinds[index], None)


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
    depth, at = 1, start
    for _ in range(MOST_MARKERS):
        brace = _BRACE.search(text, at, limit)
        if brace is None:
            break
        at = brace.end()
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return _line_end(text, start, limit)


def _places(text: str, needle: str) -> Iterator[int]:
    end = len(text)
    for _ in range(MOST_MARKERS):
        end = text.rfind(needle, 0, end)
        if end < 0:
            return
        yield end


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    for at in _places(text, "box"):
        for word, before in (("\\boxed", 1), ("\\fbox", 2)):
            start = at - before
            if start >= 0 and text.startswith(word, start):
                brace = start + len(word)
                brace += text.startswith(" ", brace)
                if text.startswith("{", brace):
                    yield start, brace + 1


def _hashes(text: str) -> Iterator[tuple[int, int]]:
    for at in _places(text, "####"):
        yield at, at + 4


def _phrases(text: str) -> Iterator[tuple[int, int]]:
    lower, upper = _places(text, "nswer"), _places(text, "NSWER")
    low, high = next(lower, -1), next(upper, -1)
    for _ in range(MOST_MARKERS):
        at = max(low, high)
        if at < 0:
            return
        if at == low:
            low = next(lower, -1)
        else:
            high = next(upper, -1)
        phrase = _PHRASE.match(text, at - 1) if at else None
        if phrase is not None:
            yield at - 1, phrase.end()


def sentence_end(text: str, start: int, end: int) -> int:
    """Where the first sentence of `text[start:end]` ends: before a full stop, or at `end`.

    Example:

    >>> sentence_end("It is 1.5. Really.", 0, 18)
    9
    """
    found = _SENTENCE_END.search(text, start, end)
    return end if found is None else found.start()
