r"""The rule for numbers: `gsm8k`, `svamp`, `arithmetic_chain`.

The answer of a text is found in these steps:

1. The last marker whose field gives a number decides. Markers and fields are those of `hf_rlae.rewards.fields`: a box,
   four hash signs, or the word "answer" with "is" or a colon.
2. In a field of the word "answer" only the first sentence counts. After hash signs the number must precede any letter,
   and a numbered heading (`#### 2. Add the rest`) gives no number. If a number follows the last equals sign of a field,
   only the part after that sign counts. The field gives its first number that is not negated.
3. If a second number is joined to it, by a space, a comma, "or", "and", "to", a dash or another operator, the field is
   ambiguous, and the text has no answer. Neither has a text whose number cannot be read.
4. A text without such a marker answers with its last number that is not negated. If "or" joins it to the number before
   it, or if it cannot be read, the text has no answer. The number must lie in the 4,000 characters before the text's
   last digit; digits that are not ASCII are searched only in the text's last 8,000 characters.
5. In a field, and in a text without a marker, at most eight negated numbers are skipped.

A number is negated by "not", "n't", "never", "nor", `≠` or `!=` directly before it ("not 5", "isn't 5", "cannot be 5").
The syntax of numbers is in `hf_rlae.rewards.number_syntax`. Values are compared exactly: 12, `12.0`, `012`, `1.2e1` and
`24/2` are equal, and 3.33 is not 10/3. The prompt is not read, so a number that stands only there gets no reward.

The ground truth, in the column `answer`, is a number or a string. If a string contains `####`, the part after the last
one counts, else all of it; it must hold exactly one number.

Source: the `####` of the dataset GSM8K (arXiv 2110.14168); the rest is ours.
"""

from __future__ import annotations

import re
from typing import Any

from hf_rlae.rewards.contract import Row, RuleReward
from hf_rlae.rewards.fields import Field, answer_fields, sentence_end
from hf_rlae.rewards.number_syntax import MOST_DIGITS, NUMBER, Number, find_numbers, last_digit, number_of, value_of
from hf_rlae.rewards.registry import register_tasks

_WINDOWS = (512, 2 * MOST_DIGITS + 192)  # most texts need the short one only
_MOST_NEGATED = 8

_LETTER = re.compile(r"[^\W\d_]")
_HEADING = re.compile(r"[.):][ \t]+[^\s*_$]")
_NEGATION = re.compile(
    r"(?:\b(?:can)?not|n['’]t|\bnever|\bnor|≠|!=|\\neq?)\s{0,2}(?:be\s|equal\s(?:to\s)?)?[\s*_`\"'$(\\]{0,4}\Z",
    re.IGNORECASE,
)
_JOINED = re.compile(
    r"[\s*_`\"'$)]{0,4}(?:(?:\\(?:text|mathrm)\{\s?)?(?:,|;|/|&|\b(?:or|and|to|through)\b|[-+*×÷·–—−±^~]|x(?=[\s\d])|\\[a-z]{1,6})"
    r"[\s*_`\"'$(}]{0,4}(?:or\s|and\s)?(?:\\?[$€£¥₹₩]\s?)?)?(?=[-−]?\.?\d)",
    re.IGNORECASE,
)
_OR = re.compile(r"[^\w]{0,8}\bor\b[^\w]{0,8}(?:not\W{1,4})?", re.IGNORECASE)


def extract_number(text: str) -> Number | None:
    r"""The number that a text gives as its answer, by the rule of this module.

    Args:
        text (`str`): any string.

    Returns:
        `Number` or `None`: `None` if the text has no answer.

    Example:

    >>> extract_number(r"So $\boxed{12}$.") == extract_number("The answer is 12.0, not 13.") == 12
    True
    >>> extract_number("The answer is 12 or 13.") is None
    True
    """
    for field in answer_fields(text):
        found = _field_number(text, field)
        if found:
            return found[0]
    return _last_number(text)


def _field_number(text: str, field: Field) -> tuple[Number | None] | None:
    """The number of a field in a tuple, `(None,)` if it is ambiguous or unreadable; `None` if there is no number."""
    start, end = field.start, field.end
    if field.kind == "phrase":
        end = sentence_end(text, start, end)
    equals = text.rfind("=", start, end)
    after = _first_number(text, equals + 1, end, field.kind) if equals >= 0 else None
    return after or _first_number(text, start, end, field.kind)


def _first_number(text: str, start: int, end: int, kind: str) -> tuple[Number | None] | None:
    for seen, match in enumerate(NUMBER.finditer(text, start, end)):
        if seen == _MOST_NEGATED:
            return None
        if _is_negated(text, match.start()):
            continue
        if kind == "hashes" and (_LETTER.search(text, start, match.start()) or _HEADING.match(text, match.end(), end)):
            return None
        if _JOINED.match(text, match.end(), end):
            return (None,)
        return (value_of(match),)
    return None


def _is_negated(text: str, start: int) -> bool:
    return _NEGATION.search(text[max(0, start - 24) : start]) is not None


def _last_number(text: str) -> Number | None:
    digit = last_digit(text)
    if digit < 0:
        return None
    # a window may begin inside a long number and hold only its tail, so a number must begin in the window's second half
    for window in _WINDOWS:
        start = max(0, digit + 1 - window)
        matches = list(NUMBER.finditer(text, start, min(len(text), digit + 32)))
        first = start + window // 2 if start else 0
        for passed, at in enumerate(range(len(matches) - 1, -1, -1)):
            if matches[at].start() < first:
                break
            if passed == _MOST_NEGATED:
                return None
            if _is_negated(text, matches[at].start()):
                continue
            if at and _OR.fullmatch(text, matches[at - 1].end(), matches[at].start()):
                return None
            return value_of(matches[at])
        if start == 0:
            break
    return None


class NumberReward(RuleReward):
    """1.0 if the number that a text gives as its answer equals the one in the column `answer`, else 0.0.

    The module's docstring states the rule.

    Args:
        name (`str`, defaults to `"number_reward"`): its `__name__`.

    Example:

    >>> reward = NumberReward()
    >>> texts = ["#### 1,200", "1200 or 12", "1.2e3"]
    >>> reward(prompts=["?"] * 3, completions=texts, answer=[1200, "1200", "1000 + 200 #### 1,200"])
    [1.0, 0.0, 1.0]
    """

    def __init__(self, name: str = "number_reward") -> None:
        super().__init__(name)

    def reference(self, answer: Any, row: Row) -> Number:
        """See `RuleReward.reference`."""
        number = _reference_string(answer) if isinstance(answer, str) else number_of(answer)
        if number is None:
            raise row.unreadable(answer, "a number, or a string with one number in it (after the last ####)")
        return number

    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """See `RuleReward.is_right`."""
        return extract_number(text) == reference


def _reference_string(answer: str) -> Number | None:
    found = list(find_numbers(answer, answer.rfind("####") + 4 if "####" in answer else 0, len(answer)))
    return found[0] if len(found) == 1 else None


register_tasks(NumberReward, ("number", "gsm8k", "svamp", "arithmetic_chain"))
