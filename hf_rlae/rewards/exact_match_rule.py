r"""The rule for short answers in words: `triviaqa`.

What is read is the part of the completion that `hf_rlae.rewards.answer_part` finds. Its answer is:

1. the field of the last marker whose field is not empty (see `hf_rlae.rewards.fields`);
2. without such a marker, the first line that is not empty.

The first 500 characters of it are read; if it corrects itself ("Paris? No, London."), only what follows the last
correction. It is right if one of these equals the answer or one of its aliases after *normalisation*:

* all of it;
* its beginning, up to the end of one of its first eight sentences ("Paris. It lies on the Seine.", "St. Louis"), but
  not up to a question mark, or up to an explanation: a comma, a dash or an opening bracket before "the", "a", "an",
  "which", "who", "where", "because", "since", "as", "not", "of course" and the like ("Paris, the capital of France");
* one of these without words that only introduce it ("It's Paris", "I think that it was Paris", "Well, Paris").

Normalisation:

1. compatibility characters become plain ones (NFKC), letters lower case (casefold), and characters without a width,
   such as soft hyphens, are removed; so are LaTeX commands for fonts (`\text{Paris}`);
2. the words a, an and the are removed, except at the end ("Vitamin A") and before a full stop ("A. Milne");
3. commas between thousands are removed;
4. punctuation and symbols, including `_`, and spaces are removed, so that "J. K.", "J.K." and "JK" are equal, and
   so are "Qur'an" and "Quran", "AC/DC" and "AC DC". One space stays between digits: "3 5" is not "35". What
   changes a meaning stays: the sign and the decimal point of a number, `+` after a letter or digit ("C++"), and `#`
   after a letter.

If that removes everything ("!!!", "The The"), the text is compared after step 1, without spaces at its ends. Accents
count. A longer sentence ("Paris is large"), two answers ("Paris or London") and "not Paris" equal no alias and are
wrong; so is an empty text. The prompt is not read.

The ground truth: the column `answer` holds a string, a list of strings, or TriviaQA's `{"value", "aliases",
"normalized_aliases"}`; the column `aliases` may hold more of them.

Source: TriviaQA (arXiv 1705.03551) and its public evaluation code, which compares neither beginnings nor sentences, and
keeps spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from hf_rlae.rewards.fields import ANSWER_WORDS, answer_fields, check_words, corrected
from hf_rlae.rewards.registry import register_tasks
from hf_rlae.rewards.rule import Row, RuleReward

# NFKC turns some characters into 18, and sorts long runs of accents slowly
_LONGEST = 500
_MOST_SENTENCES = 8

_ARTICLES = frozenset({"a", "an", "the"})
_END = re.compile(r"[.!?](?=\s|[*\"')}]|\Z)(?!\s+or\b)", re.IGNORECASE)
_EXPLANATION = re.compile(
    r"(?:,\s|\s[—–-]\s|—|\s(?=\())\(?\s*(?:the|an?|which|who|whose|where|when|because|since|as|not|of course|located"
    r"|in|capital|also|known|formerly|i think|i believe|i guess)\b|\s(?:because|since)\b",
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    r"(?:(?:well|so|thus|therefore|hence|ok(?:ay)?|sure|yes|oh|hmm|probably|definitely|clearly"
    r"|maybe|perhaps|i(?:['’]m| am) (?:(?:pretty|quite|fairly) )?sure(?: that)?"
    r"|i (?:think|believe|guess)(?: that)?|i(?:['’]d| would) say(?: that)?|my guess is(?: that)?)[\s,:!.]\s*){0,3}"
    r"(?:(?:(?:it|that|this|he|she|they|these|those) (?:is|was|are|were|would be|must be|should be|must have been)|"
    r"(?:it|that|he|she)['’]s|they['’]re)\s(?:(?:called|probably|likely|definitely|clearly)\s)?)?",
    re.IGNORECASE,
)
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|operatorname|emph|underline)[ ]?(?=\{)"
)
_SPACING = re.compile(r"\\[ ,;:!]|~")
# the conditions on what precedes a character follow it, because searching for a character first is fast
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
_POINT = re.compile(r"\.(?<![\w.]\.)(?=\d)")
_MEANINGFUL = re.compile(
    r"[-–−+.#](?:(?:(?<=−)|(?<![\w)].)(?<=[-–]))(?=[$€£¥₹₩]?\d)|(?<=\d\.)(?=\d)|(?<=[^\W_]\+)\+*+|(?<=[^\W\d_]#))"
)
_SPACE = re.compile(r" (?:(?<!\d )|(?!\d))")
_MARKS = "*_`\"'“”‘’()[]{},;:!?$"
_FENCE = re.compile(r"\s*+```\w{0,20}[ \t]*+\n")
_FULL_LINE = re.compile(r"\S")


def normalize_answer(text: str) -> str:
    """The form in which answers are compared, by the steps in the module's docstring.

    Example:

    >>> [normalize_answer(text) for text in ("The  Beatles!", "AC/DC", "J. K. Rowling", "The The", "-3.50", "3 50")]
    ['beatles', 'acdc', 'jkrowling', 'the the', '−3.50', '3 50']
    """
    plain = unicodedata.normalize("NFKC", _SPACING.sub(" ", _FONT.sub("", text))).casefold()
    hidden = {ord(char): None for char in set(plain) if unicodedata.category(char) == "Cf"}
    plain = plain.translate(hidden) if hidden else plain
    words = _POINT.sub("0.", _THOUSANDS.sub("", plain)).split()
    kept = [word for word in words if word.strip(_MARKS) not in _ARTICLES]
    if kept and kept[-1] != words[-1]:
        kept.append(words[-1])
    return _SPACE.sub("", " ".join(_without_marks(" ".join(kept)).split())) or _alone(plain)


def _alone(plain: str) -> str:
    """An answer of articles or of marks only."""
    words = " ".join(plain.split())
    return words.strip(f"{_MARKS} ") or words


def _without_marks(text: str) -> str:
    spaces = dict.fromkeys((ord(char) for char in set(text) if unicodedata.category(char)[0] in "PS"), " ")
    if not spaces:
        return text
    pieces, end = [], 0
    for found in _MEANINGFUL.finditer(text):
        pieces += [text[end : found.start()].translate(spaces), "−" if found[0] in "-–" else found[0]]
        end = found.end()
    return "".join(pieces) + text[end:].translate(spaces)


def extract_answers(text: str, answer_words: Sequence[str] = ANSWER_WORDS) -> list[str]:
    r"""The answers that a text may give, normalised: its answer, and the beginnings of it that may be meant alone.

    Args:
        text (`str`): any string, without reasoning.
        answer_words (`Sequence[str]`): the words that announce an answer.

    Returns:
        `list[str]`: without empty ones.

    Example:

    >>> extract_answers("St. Louis")
    ['stlouis', 'st']
    >>> extract_answers(r"So it is \boxed{Paris}."), extract_answers("It's Paris")
    (['paris'], ['itsparis', 'paris'])
    """
    line = _answer_line(text, answer_words)
    line = corrected(line) or line
    candidates = [line, *_beginnings(line)]
    candidates += [each[_LEAD_IN.match(each).end() :] for each in candidates]  # type: ignore[union-attr]
    return [found for found in dict.fromkeys(map(normalize_answer, dict.fromkeys(candidates))) if found]


def _beginnings(line: str) -> Iterator[str]:
    for found in islice(_END.finditer(line), _MOST_SENTENCES):
        if found[0] != "?":
            yield line[: found.start()]
    explanation = _EXPLANATION.search(line)
    if explanation is not None:
        yield line[: explanation.start()]


def _answer_line(text: str, answer_words: Sequence[str]) -> str:
    for field in answer_fields(text, answer_words):
        content = text[field.start : min(field.end, field.start + _LONGEST)].strip()
        if content:
            return content
    fence = _FENCE.match(text)
    start = _FULL_LINE.search(text, fence.end() if fence else 0)
    if start is None:
        return ""
    end = text.find("\n", start.start())
    return text[start.start() : len(text) if end < 0 else end][:_LONGEST]


class ExactMatchReward(RuleReward):
    """1.0 if the answer of a text equals `answer` or an alias after normalisation, else 0.0.

    The module's docstring states the rule, and what `answer` and `aliases` may be.

    Args:
        name (`str`, defaults to `"exact_match_reward"`): its `__name__`.
        answer_words (`Sequence[str]`, *optional*): the words that announce an answer before "is" or a colon, such as
            `["answer", "Antwort"]`; only "answer" by default.
        reading: the options of `AnswerRule`.

    Example:

    >>> reward = ExactMatchReward()
    >>> aliases = [["NYC", "New York City"]] * 3
    >>> reward(["?"] * 3, ["nyc.", "The answer is: New York City", "York"], answer=["New York"] * 3, aliases=aliases)
    [1.0, 1.0, 0.0]
    """

    measure = "exact_match"
    further_columns = ("aliases",)

    def __init__(
        self, name: str = "exact_match_reward", *, answer_words: Sequence[str] = ANSWER_WORDS, **reading: Any
    ) -> None:
        super().__init__(name, **reading)
        self.answer_words = check_words("answer_words", answer_words)

    def reference(self, answer: Any, row: Row) -> frozenset[str]:
        """See `RuleReward.reference`."""
        names = [*_names(answer, row, "answer"), *_names(row.columns.get("aliases", []), row, "aliases")]
        accepted = frozenset(filter(None, map(normalize_answer, names)))
        if not accepted:
            raise row.unreadable(answer, "a non-empty string, a list of them, or {'value', 'aliases'}")
        return accepted

    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """See `RuleReward.is_right`."""
        return not reference.isdisjoint(extract_answers(text, self.answer_words))


def _names(value: Any, row: Row, column: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        parts = [value.get("value") or [], value.get("aliases") or [], value.get("normalized_aliases") or []]
        return [name for part in parts for name in _names(part, row, column)]
    if isinstance(value, Sequence) and all(isinstance(name, str) for name in value):
        return list(value)
    raise row.unreadable(value, "a string, a list of strings, or {'value', 'aliases'}", column)


register_tasks(ExactMatchReward, ("exact_match", "triviaqa"))
