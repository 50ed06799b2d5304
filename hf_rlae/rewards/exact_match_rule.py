r"""The rule for short answers in words: `triviaqa`.

What a text answers:

1. If it has a marker with something in its field, the field of the last such marker (markers and fields are those of
   `hf_rlae.rewards.fields`).
2. Otherwise its first line that is not empty.

Of either, 500 characters are read. The answer is right if the whole of it, or its beginning up to the end of one of
its first eight sentences ("Paris. It lies on the Seine.", "St. Louis"), equals the answer or one of its aliases after
*normalisation*:

1. compatibility characters become plain ones (NFKC), letters small (casefold);
2. punctuation and symbols become spaces, `_` too;
3. the words a, an, the go;
4. runs of spaces become one, none stay at the ends.

If steps 2 and 3 leave nothing ("!!!", "The The"), the text after step 1 stands as it is. Accents count. A longer
sentence ("It is Paris"), two answers ("Paris or London") and "not Paris" equal no alias and are wrong; so is an empty
text. Prompts are not looked at.

The ground truth: the column `answer` holds a string, a list of strings, or TriviaQA's `{"value", "aliases",
"normalized_aliases"}`; further ones may be in the column `aliases`.

Source: TriviaQA (arXiv 1705.03551) and its public evaluation code, which differs in step 1 and in what becomes of
answers that lose all their characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlae.rewards.contract import Row, RuleReward
from hf_rlae.rewards.fields import answer_fields
from hf_rlae.rewards.registry import register_tasks

# NFKC makes 18 characters of some, and sorts long runs of accents slowly
_LONGEST = 500
_MOST_SENTENCES = 8

_ARTICLES = frozenset({"a", "an", "the"})
_END = re.compile(r"[.!?](?=\s|[*\"')]|\Z)")
_FULL_LINE = re.compile(r"\S")


class _Spaces(dict[int, str]):
    """For `str.translate`: punctuation and symbols become spaces, looked up once a character."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = " " if unicodedata.category(char)[0] in "PS" else char
        return self[code]


_SPACES = _Spaces()


def normalize_answer(text: str) -> str:
    """The form in which answers are compared, by the steps in the module's docstring.

    Example:

    >>> normalize_answer("The  Beatles!"), normalize_answer("AC/DC"), normalize_answer("The The")
    ('beatles', 'ac dc', 'the the')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = [word for word in folded.translate(_SPACES).split() if word not in _ARTICLES]
    return " ".join(words) or " ".join(folded.split())


def extract_answers(text: str) -> list[str]:
    r"""What a text may be answering with, normalised: its answer, and beginnings of it that end a sentence.

    Args:
        text (`str`): any string.

    Returns:
        `list[str]`: none of them is empty.

    Example:

    >>> extract_answers("St. Louis")
    ['st louis', 'st']
    >>> extract_answers(r"So it is \boxed{Paris}.")
    ['paris']
    """
    line = _answer_line(text)
    ends = [found.start() for found, _ in zip(_END.finditer(line), range(_MOST_SENTENCES), strict=False)]
    candidates = [normalize_answer(line), *(normalize_answer(line[:end]) for end in ends)]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate]


def _answer_line(text: str) -> str:
    for field in answer_fields(text):
        content = text[field.start : min(field.end, field.start + _LONGEST)].strip()
        if content:
            return content
    start = _FULL_LINE.search(text)
    if start is None:
        return ""
    end = text.find("\n", start.start())
    return text[start.start() : len(text) if end < 0 else end][:_LONGEST]


class ExactMatchReward(RuleReward):
    """1.0 where the answer of a text equals `answer` or an alias after normalisation, else 0.0.

    The module's docstring has the rule, and what `answer` and `aliases` may be.

    Args:
        name (`str`, defaults to `"exact_match_reward"`): its `__name__`.

    Example:

    >>> reward = ExactMatchReward()
    >>> aliases = [["NYC", "New York City"]] * 3
    >>> reward(["?"] * 3, ["nyc.", "The answer is: New York City", "York"], answer=["New York"] * 3, aliases=aliases)
    [1.0, 1.0, 0.0]
    """

    measure = "exact_match"
    further_columns = ("aliases",)

    def __init__(self, name: str = "exact_match_reward") -> None:
        super().__init__(name)

    def reference(self, answer: Any, row: Row) -> frozenset[str]:
        """See `RuleReward.reference`."""
        names = [*_names(answer, row, "answer"), *_names(row.columns.get("aliases", []), row, "aliases")]
        accepted = frozenset(filter(None, map(normalize_answer, names)))
        if not accepted:
            raise row.unreadable(answer, "a string that is not empty, a list of them, or {'value', 'aliases'}")
        return accepted

    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """See `RuleReward.is_right`."""
        return not reference.isdisjoint(extract_answers(text))


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
