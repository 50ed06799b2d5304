r"""The rule for numbers: `gsm8k`, `svamp`, `arithmetic_chain`.

What is read is the part of the completion that `hf_rlae.rewards.answer_part` finds. Its answer is found in these steps:

1. The last marker whose field holds a number decides. Markers and fields are those of `hf_rlae.rewards.fields`: a box,
   four hash signs, or the word "answer" with "is" or a colon. The content of an answer tag on one line is a field too.
2. A field must hold exactly one number; otherwise the text has no answer. In detail:

   * In a field of the word "answer" only the first sentence counts, and nothing in it if it is a question. After hash
     signs the number must precede any word, and a numbered heading (`#### 2. Add the rest`) holds no number; nor does
     a numbered item in the line after "answer:".
   * What follows "because" or "since" is not read. If a number follows the last equals sign, only the part after that
     sign is read (`3 * 4 = 12`), unless it is a calculation (`12 = 3 * 4`).
   * Negated numbers ("not 5") are skipped. The first one that is not negated is the answer.
   * *Nothing mathematical may touch it*: no function or command (`\sqrt{2}`, `\log_2 8`, `sin 30`), variable (`2x`),
     operator with an operand (`2n+1`, `x - 5`), factorial, power, bracket (`2(3)`), comparison (`> 2`, "more than 2",
     "at least 2", "2 or more"), arithmetic in words ("2 squared", "twice 2", "2 times 3", "2 and a half"). Units may: a
     word of two letters or more, one of `m g s h l t p W V A J N K C F`, a character that is no letter of formulas
     (`12元`), `%`, degrees, a `\frac` of two `\text` or `\mathrm`. So may commands that only change how the
     number looks (`\text`, `\mathbf`, `\textcolor{red}`, `\num`, `\hspace{2pt}`), if no minus sign touches them.
   * *A second number* makes the field ambiguous ("12 or 13", "3 hours and 20 minutes", "12 apples, 5 pears"), unless it
     belongs to an explanation, which begins with a bracket, `;`, `≈`, a dash between spaces, or a word such as "so",
     "as" or "which", or follows a preposition ("12 apples for 3 children", "$12 over 3 weeks"), or compares behind a
     comma ("12 days, 3 more than Tom").
   * A field that is taken back ("That is wrong") does not count, and neither does one of two joined boxes: see
     `hf_rlae.rewards.retractions`.
3. A text without such a marker answers with its last number that is neither negated nor compared with ("more than 12").
   If "or" joins it to the number before it, if both are parts of one amount ("3 hours and 20 minutes"), if something
   mathematical touches it (`2x`, `\sqrt{2}`), or if it cannot be read, the text has no answer. The number must lie in
   the 4,000 characters before the text's last digit; digits that are not ASCII are searched only in the text's last
   8,000 characters.
4. In a field, and in a text without a marker, at most eight numbers are skipped.

A number is negated by "not", "n't", "never", "nor", `≠` or `!=` directly before it ("not 5", "isn't 5", "cannot be 5").
The syntax of numbers is in `hf_rlae.rewards.number_syntax`; signs and magnitudes ("minus 3", "1.5 million") belong to
it. Values are compared exactly: 12, `12.0`, `012`, `1.2e1` and `24/2` are equal, and 3.33 is not 10/3. The prompt is
not read, so a number that stands only there gets no reward.

The ground truth, in the column `answer`, is a number or a string. If a string contains `####`, the part after the last
one counts, else all of it; it must hold exactly one number.

Source: the `####` of the dataset GSM8K (arXiv 2110.14168); the rest is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.fields import (
    ANSWER_WORDS,
    LONGEST_FIELD,
    Field,
    answer_fields,
    check_words,
    sentence_end,
)
from hf_rlae.rewards.number_context import has_one_number, is_compared, is_joined, is_negated, is_touched
from hf_rlae.rewards.number_syntax import (
    MOST_DIGITS,
    NUMBER,
    ONE_DIGIT,
    Found,
    Number,
    find_numbers,
    found_number,
    last_digit,
    lone_number,
    number_of,
    spaced_thousands,
)
from hf_rlae.rewards.registry import register_tasks
from hf_rlae.rewards.retractions import is_remark, is_second_box, rejection_end
from hf_rlae.rewards.rule import Row, RuleReward

_WINDOWS = (192, 2 * MOST_DIGITS + 192)  # most texts need the short one only
_REMARK_REACH = 512
_MOST_SKIPPED = 8
_LONGEST_START = 32  # of a number, up to its first digit: a sign, a currency, a fraction's command

# a sign, a currency or a word of approximation may stand before the number after hash signs
_MAY_PRECEDE = re.compile(r"\\[a-z]+|\b(?:minus|negative|about|approximately|USD|EUR|GBP|INR|US|Rs)\b", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")
_HEADING = re.compile(r"[.):][ \t]+[^\s*_$]")
_ITEM = re.compile(r"[.)][ \t]+[^\W\d_]")
_BECAUSE = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_OTHER_EQUATION = re.compile(
    r"\d.*?(?:[,;&]|\bor\b|\band\b)[\s$}{(]{0,8}(?:\\?[A-Za-z]{1,8}(?:_\{?\w\}?)?)?[\s$]{0,4}=\Z", re.DOTALL
)


def extract_number(text: str, answer_words: Sequence[str] = ANSWER_WORDS, is_marked: bool = False) -> Number | None:
    r"""The number that a text gives as its answer, by the rule of this module.

    Args:
        text (`str`): any string, without reasoning.
        answer_words (`Sequence[str]`): the words that announce an answer.
        is_marked (`bool`, defaults to `False`): whether the text is a field, such as the content of an answer tag.

    Returns:
        `Number` or `None`: `None` if the text has no answer.

    Example:

    >>> extract_number(r"So $\boxed{12}$.") == extract_number("The answer is 12.0, not 13.") == 12
    True
    >>> [extract_number(rf"\boxed{{{field}}}") for field in ("12 or 13", r"\sqrt{2}", "2x", "3 hours and 20 minutes")]
    [None, None, None, None]
    """
    for field in answer_fields(text, answer_words):
        rejected = rejection_end(text, field)
        if rejected is not None:
            return _last_number(text[rejected:])
        found = _field_number(*_without_remark(text, field, answer_words))
        if found:
            return found[0]
    if is_marked:
        text = f":{text}"  # so that "- 3" is a number, as behind other markers, and no item of a list
        field = Field("tag", 1, min(len(text), LONGEST_FIELD))
        rejected = rejection_end(text, field)
        found = _field_number(text, field) if rejected is None else (_last_number(text[rejected:]),)
        return found[0] if found else None
    return _last_number(text)


def _without_remark(text: str, field: Field, answer_words: Sequence[str]) -> tuple[str, Field]:
    """A text and its field: those before "Actually that took 3 steps", which `fields` takes for a correction."""
    if is_remark(text, field):
        text = text[max(0, field.start - _REMARK_REACH) : field.start]
        field = next(answer_fields(text, answer_words), Field("phrase", 0, 0))
    return text, field


def _field_number(text: str, field: Field) -> tuple[Number | None] | None:
    """The number of a field in a tuple, `(None,)` if it is ambiguous or unreadable; `None` if there is no number."""
    start, end = field.start, field.end
    if is_second_box(text, field):
        return (None,)
    if field.kind == "phrase":
        end = sentence_end(text, start, end)
        if text[end : end + 1] in ("?", "？"):
            return None
    lone = None if field.is_next_line else lone_number(text, start, end)
    if lone is not None and not is_negated(text, start):
        return (lone,)
    because = _BECAUSE.search(text, start, end)
    end = because.start() if because and NUMBER.search(text, start, because.start()) else end
    spaced = spaced_thousands(text, start, end)
    if spaced is not None:
        return (spaced,)
    equals = max(text.rfind("=", start, end), text.rfind(">>", start, end) + 1)  # GSM8K writes <<3*4=12>>12
    after = _first_number(text, equals + 1, end, field) if equals > 0 else None
    if after is None:
        return _first_number(text, start, end, field)
    if after == (None,):
        return _first_number(text, start, equals, field) or after
    return (None,) if _OTHER_EQUATION.match(text, *_from_digit(text, start, equals + 1)) else after


def _from_digit(text: str, start: int, end: int) -> tuple[int, int]:
    found = NUMBER.search(text, start, end)
    return (found.start() if found else end, end)


def _first_number(text: str, start: int, end: int, field: Field) -> tuple[Number | None] | None:
    first = ONE_DIGIT.search(text, start, end)
    if first is None:
        return None
    for seen, match in enumerate(NUMBER.finditer(text, max(start, first.start() - _LONGEST_START), end)):
        if seen == _MOST_SKIPPED:
            return None
        if is_negated(text, match.start()):
            continue
        found = found_number(match, end)
        if field.kind == "hashes":
            before = _MAY_PRECEDE.sub("", text[start : match.start()])
            if _LETTER.search(before) or _HEADING.match(text, match.end(), end):
                return None
        if field.is_next_line and not text[start : match.start()].strip() and _ITEM.match(text, match.end(), field.end):
            return None
        is_one = not is_touched(text, found, start, end, field.kind) and has_one_number(text, found.end, end)
        return (found.value if is_one else None,)
    return None


def _last_number(text: str) -> Number | None:
    digit = last_digit(text)
    if digit < 0:
        return None
    # a window may begin inside a long number and hold only its tail, so a number must begin in the window's second half
    for window in _WINDOWS:
        start = max(0, digit + 1 - window)
        matches = list(NUMBER.finditer(text, start, min(len(text), digit + 32)))
        first = start + window // 2 if start else 0
        for skipped, at in enumerate(range(len(matches) - 1, -1, -1)):
            if matches[at].start() < first:
                break
            if skipped == _MOST_SKIPPED:
                return None
            if is_negated(text, matches[at].start()) or is_compared(text, matches[at].start()):
                continue
            return _unless_ambiguous(text, matches[at - 1].end() if at else -1, found_number(matches[at], len(text)))
        if start == 0:
            break
    return None


def _unless_ambiguous(text: str, before: int, found: Found) -> Number | None:
    """The value of the last number of a text, where the number before it ends at `before` (-1 if there is none)."""
    is_part = before >= 0 and is_joined(text, before, found.start)
    return None if is_part or is_touched(text, found, 0, len(text)) else found.value


class NumberReward(RuleReward):
    """1.0 if the number that a text gives as its answer equals the one in the column `answer`, else 0.0.

    The module's docstring states the rule.

    Args:
        name (`str`, defaults to `"number_reward"`): its `__name__`.
        answer_words (`Sequence[str]`, *optional*): the words that announce an answer before "is" or a colon, such as
            `["answer", "Antwort"]`; only "answer" and "answers" by default.
        reading: the options of `AnswerRule`.

    Example:

    >>> reward = NumberReward()
    >>> texts = ["#### 1,200", "1200 or 12", "1.2e3"]
    >>> reward(prompts=["?"] * 3, completions=texts, answer=[1200, "1200", "1000 + 200 #### 1,200"])
    [1.0, 0.0, 1.0]
    """

    def __init__(
        self, name: str = "number_reward", *, answer_words: Sequence[str] = ANSWER_WORDS, **reading: Any
    ) -> None:
        super().__init__(name, **reading)
        self.answer_words = check_words("answer_words", answer_words)

    def may_answer(self, text: str, batch: Batch, row: int) -> bool:
        """See `AnswerRule.may_answer`."""
        return last_digit(text) >= 0

    def reference(self, answer: Any, row: Row) -> Number:
        """See `RuleReward.reference`."""
        number = _reference_string(answer) if isinstance(answer, str) else number_of(answer)
        if number is None:
            raise row.unreadable(answer, "a number, or a string with one number in it (after the last ####)")
        return number

    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """See `RuleReward.is_right`."""
        return extract_number(text, self.answer_words, row.is_marked) == reference


def _reference_string(answer: str) -> Number | None:
    start = answer.rfind("####") + 4 if "####" in answer else 0
    lone = lone_number(answer, start, len(answer))
    if lone is not None:
        return lone
    spaced = spaced_thousands(answer, start, len(answer))
    found = list(find_numbers(answer, start, len(answer)))
    return found[0].value if len(found) == 1 else spaced


register_tasks(NumberReward, ("number", "gsm8k", "svamp", "arithmetic_chain"))
