r"""Finds where a text announces its answer.

Three *markers* announce an answer:

1. a box, `\boxed{...}` or `\fbox{...}`: its field is the text between the braces, or the rest of the line if the brace
   is never closed;
2. four or more hash signs, `####`: the rest of the line;
3. an answer word, "answer" in any case unless the rule is told others, at most four characters that are not letters,
   optionally "to the question" or something in brackets, and then "is", "was", "are", "equals", "would be", "should
   be", "must be", "will be" (or the German, French, Spanish or Chinese for "is"), a colon or an equals sign: the rest
   of the line, or the next line with text if the rest of this one is empty. "The wrong answer is" is no marker.

   * In JSON, `"answer": "B"`, the field is the value.
   * A correction replaces the field: in "The answer is 12. No, 13." it is what follows "No,". So do "wait", "actually",
     "sorry" and "correction" at the beginning of the second sentence.

A field ends early where a later marker begins, and after 8,000 characters. Only the last 64 markers of each kind are
read (for the third kind, the last 64 occurrences of each word).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from hf_rlae.errors import ConfigError

LONGEST_FIELD = 8_000
MOST_MARKERS = 64

_BRACE = re.compile(r"[{}]")
_ANNOUNCES = (
    r"\W{0,4}?(?:(?:to|of|for)\s(?:the|this|your)\s\w{1,20}\W{0,4}?)?(?:[(\[][^()\[\]\n]{1,40}[)\]]\W{0,3}?)?"
    r"(?:(?:['’]s|is|was|are|equals|(?:would|should|must|will)\s{1,4}be|ist|lautet|est|es)\b|是|为|[:=：])"
)
_WRONG = re.compile(r"\b(?:wrong|incorrect|false|worst|other)\W{1,3}\Z", re.IGNORECASE)
_LEAD = re.compile(r"[\s*_`:：]*+")
_JSON = re.compile(r"\s*(?:\"(?P<string>(?:[^\"\\\n]|\\.){0,400})\"|[^\"\n}]*?(?=,\s*\"|\}))")
CORRECTION = re.compile(
    r"[\s*_\"')]*(?:(?:oh|hmm+|um)\b\W{1,3})?"
    r"(?:(?:wait|actually|sorry|oops|correction|scratch that|i meant?|or rather)\b"
    r"|no\b(?=\s*(?:[,.:;!—–-]|it\b|that\b|wait\b|sorry\b)))[\s,.:;!—–-]*"
    r"(?:(?:no|wait|sorry|i meant?|actually|it(?:['’]s| is| should be)|that(?:['’]s| is))\b[\s,.:;!—–-]*){0,3}"
    r"(?=[^\s,.:;!—–-])",
    re.IGNORECASE,
)
"""What takes back the sentence before it. It begins where that sentence ends."""
_CORRECTED = re.compile(rf"(?:[.!?;…—–\n]|\s-(?=\s)|,(?=\s*(?:no|wait)\b)){CORRECTION.pattern}", re.IGNORECASE)
_COMMON_WORDS = frozenset({"choice", "option"})
# these words need an adjective, a mark or a line's beginning before them: "the first option is a dog" is no answer
_THE_ONE = re.compile(
    r"(?:\A|[\n\"'{*_#>]|\b(?:correct|best|right|my|final|chosen|likely|appropriate|accurate)\s)[*_ ]{0,4}\Z", re.I
)
_SENTENCE_END = re.compile(r"[.?。？](?=[\s*_`\"'’”)\]}$]|\Z)|[!！](?=[\s*_`\"'’”]|\Z)")


ANSWER_WORDS = ("answer",)
"""The words that announce an answer, unless a rule is told others."""


@dataclass(frozen=True)
class Field:
    """The part of a text in which a marker announces the answer.

    Attributes:
        kind (`str`): `"box"`, `"hashes"` or `"phrase"`; `"tag"` for the content of an answer tag.
        start (`int`), end (`int`): positions in the text.
        is_next_line (`bool`, defaults to `False`): whether a line ends between the marker and the field.
    """

    kind: str
    start: int
    end: int
    is_next_line: bool = False


def answer_fields(text: str, words: Sequence[str] = ANSWER_WORDS) -> Iterator[Field]:
    r"""The fields of a text, the last one first.

    Args:
        text (`str`): any string.
        words (`Sequence[str]`): the words that announce an answer.

    Example:

    >>> text = "The answer is 4. No:\n#### 5"
    >>> [text[field.start:field.end] for field in answer_fields(text)]
    [' 5', '4. No:']
    """
    limit = len(text)
    markers = list(_boxes(text)) if "box" in text else []
    markers += [(at, at + 4, "hashes") for at in _places(text, "####")]
    for word in words:
        markers += _phrases(text, word)
    for marker, start, kind in sorted(markers, reverse=True):
        if start <= limit:
            yield _field(text, kind, start, min(limit, start + LONGEST_FIELD))
        limit = marker


def _field(text: str, kind: str, start: int, limit: int) -> Field:
    if kind == "box":
        return Field(kind, start, _closing_brace(text, start, limit))
    if kind == "hashes":
        return Field(kind, start, _line_end(text, start, limit))
    if kind == "json":
        value = _JSON.match(text, start, limit)
        if value is not None:
            return Field("phrase", *value.span("string" if value["string"] is not None else 0))
    lead = _LEAD.match(text, start, limit)
    begin = lead.end() if lead else start
    end = _line_end(text, begin, limit)
    correction = CORRECTION.match(text, min(sentence_end(text, begin, end) + 1, end), end)
    return Field("phrase", correction.end() if correction else begin, end, is_next_line="\n" in text[start:begin])


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


def _places(text: str, needle: str) -> list[int]:
    """The positions of the last occurrences, the last one first."""
    found: list[int] = []
    at = text.rfind(needle)
    while at >= 0 and len(found) < MOST_MARKERS:
        found.append(at)
        at = text.rfind(needle, 0, at)
    return found


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


def _phrases(text: str, word: str) -> Iterator[tuple[int, int, str]]:
    forms, phrase = _phrase(word)
    places = {at for form in forms for at in _places(text, form)}
    for at in sorted(places, reverse=True)[:MOST_MARKERS]:
        found = phrase.match(text, at - 1) if at else None
        near = max(0, at - 24)
        if found is None or _WRONG.search(text, near, at - 1):
            continue
        if word not in _COMMON_WORDS or _THE_ONE.search(text, near, at - 1):
            yield at - 1, found.end(), "json" if '"' in found[0] else "phrase"


@cache
def _phrase(word: str) -> tuple[tuple[str, str], re.Pattern[str]]:
    """How a word may be written without its first letter, and what announces an answer with it."""
    plural = "s?" if word.lower() == "answer" else ""
    pattern = re.compile(rf"(?<![A-Za-z]){re.escape(word)}{plural}{_ANNOUNCES}", re.IGNORECASE)
    return (word[1:].lower(), word[1:].upper()), pattern


def check_words(name: str, given: Any) -> tuple[str, ...]:
    """Answer words: at least one, of two characters or more.

    Raises:
        ConfigError: something else.

    Example:

    >>> check_words("answer_words", ["Antwort"])
    ('Antwort',)
    """
    words = () if isinstance(given, str) or not isinstance(given, Sequence) else tuple(given)
    if not words or not all(isinstance(word, str) and len(word.strip()) > 1 for word in words):
        raise ConfigError(
            f'{name}={given!r:.120}: expected words of two letters or more, such as ["answer", "Antwort"]'
        )
    return tuple(word.strip() for word in words)


def corrected(text: str) -> str:
    """What follows the last correction in a text; empty if there is none.

    Example:

    >>> corrected("Paris? No, London.")
    'London.'
    """
    end = 0
    for found, _ in zip(_CORRECTED.finditer(text), range(MOST_MARKERS), strict=False):
        end = found.end()
    return text[end:] if end else ""


def sentence_end(text: str, start: int, end: int) -> int:
    """Where the first sentence of `text[start:end]` ends: before its full stop, or at `end`.

    Example:

    >>> sentence_end("It is 1.5. Really.", 0, 18)
    9
    """
    found = _SENTENCE_END.search(text, start, end)
    return end if found is None else found.start()
