r"""The rule for short answers in words: `triviaqa`.

The answer of a text is:

1. the field of the last marker whose field is not empty (see `hf_rlae.rewards.fields`);
2. without such a marker, the first line that is not empty.

The first 500 characters of it are read. It is right if all of it, or its beginning up to the end of one of its first
eight sentences ("Paris. It lies on the Seine.", "St. Louis"), equals the answer or one of its aliases after
*normalisation*:

1. compatibility characters become plain ones (NFKC), and letters lower case (casefold);
2. punctuation and symbols become spaces, including `_`;
3. the words a, an and the are removed;
4. runs of spaces become one space, and spaces at the ends are removed.

If steps 2 and 3 remove everything ("!!!", "The The"), the text after step 1 is compared. Accents count. A longer
sentence ("It is Paris"), two answers ("Paris or London") and "not Paris" equal no alias and are wrong; so is an empty
text. The prompt is not read.

The ground truth: the column `answer` holds a string, a list of strings, or TriviaQA's `{"value", "aliases",
"normalized_aliases"}`; the column `aliases` may hold more of them.

Source: TriviaQA (arXiv 1705.03551) and its public evaluation code, which differs in step 1 and in the treatment of
answers that normalisation would empty.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlae.rewards.contract import Row, RuleReward
from hf_rlae.rewards.fields import answer_fields
from hf_rlae.rewards.registry import register_tasks

# NFKC turns some characters into 18, and sorts long runs of accents slowly
_LONGEST = 500
_MOST_SENTENCES = 8

_ARTICLES = frozenset({"a", "an", "the"})
_END = re.compile(r"[.!?](?=\s|[*\"')]|\Z)")
_FULL_LINE = re.compile(r"\S")


def normalize_answer(text: str) -> str:
    """The form in which answers are compared, by the steps in the module's docstring.

    Example:

    >>> normalize_answer("The  Beatles!"), normalize_answer("AC/DC"), normalize_answer("The The")
    ('beatles', 'ac dc', 'the the')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(" " if unicodedata.category(char)[0] in "PS" else char for char in folded)
    return " ".join(word for word in spaced.split() if word not in _ARTICLES) or " ".join(folded.split())


def extract_answers(text: str) -> list[str]:
    r"""The answers that a text may give, normalised: its answer, and the beginnings of it that end a sentence.

    Args:
        text (`str`): any string.

    Returns:
        `list[str]`: without empty ones.

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
    """1.0 if the answer of a text equals `answer` or an alias after normalisation, else 0.0.

    The module's docstring states the rule, and what `answer` and `aliases` may be.

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
            raise row.unreadable(answer, "a non-empty string, a list of them, or {'value', 'aliases'}")
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
