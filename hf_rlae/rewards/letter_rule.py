r"""The rule for multiple choice: `mmlu`, `arc_challenge`, `gpqa`, `piqa`.

What is read is the part of the completion that `hf_rlae.rewards.answer_part` finds. A *letter* is one of the first N
letters of the alphabet, where N is the number of options (26 if the row has no column `choices`), that stands alone: it
touches no letter, digit, `_` or apostrophe, and neither `-`, `+` nor `#` follows it (`B-cell` and `C++` hold none). In
detail:

* A letter is *marked* if it is followed by a closing bracket, `.`, `:`, `,`, `;`, `*`, a quotation mark, the end of the
  line or the end of the text: `B.`, `(B)`, `**B**`, `\text{B}`.
* A capital counts whether it is marked or not. `A` and `I` are also words: they count if they are marked, or if a dash,
  an opening bracket or one of because, since, as, and, or, but, for, which, is, not, here and the like follows. So "A
  dog barks" holds no letter, and "A because ..." does.
* A small letter counts at the beginning of what is read (`b) Paris`, `b`) or in brackets; `a` and `i` only if marked.
* A letter after "not", "n't", "never", "neither", "nor", "except", "rather than" or "the wrong answer is" is negated,
  and one before "is wrong", "is not", "cannot" or the like is refuted. They do not count.
* A letter that is joined to another one by a comma, `/`, `&`, "or", "and" or "nor" is ambiguous.

The answer of a text is found in these steps:

1. The last marker whose field names an option decides (see `hf_rlae.rewards.fields`; only the first sentence of a field
   of an answer word counts). The answer words are "answer" and, after an adjective as in "the correct choice is", or
   at the beginning of a line, "choice" and "option". If the field is the text of an option, it names that option.
   Otherwise its first letter that counts does. Otherwise, if the field begins with the text of an option, it names that
   option, the longest if there are several; otherwise the only option whose text occurs in it. An ambiguous letter ends
   the search, and so does an option's text that is joined to another one: the text has no answer. The content of an
   answer tag on one line is a field too. A field that is taken back ("That is wrong") does not count, and neither does
   one of two joined boxes: see `hf_rlae.rewards.retractions`.
2. A text that consists of the text of an option names that option.
3. A text that begins with a letter that counts ("B. Paris", "(b) because ...", "B") names it, and if it corrects itself
   ("A? No, B."), what follows the correction does. If exactly one letter is said to be correct, right, best, true or
   the answer, that one counts. If a later letter of the alphabet follows, with `)`, `.` or `:` and the text of its
   option (or, without `choices`, no verb), the text repeats the options, and this step gives nothing.
4. If the last line consists of one letter, with or without marks around it, or of the text of an option, it is named;
   so is the letter that the last line begins with if the options were listed above.
5. If exactly one letter is named in the last 2,000 characters, by brackets or bold type around it, by "is correct" or
   the like after it, or by a word before it ("option", "choose", "go with", "is", "so", "therefore" and the like), it
   is the answer.
6. If the text of exactly one option occurs in the last 2,000 characters ("It's the liver!"), not negated and not within
   the text of another option that occurs, it is the answer.

Otherwise the text has no answer. So two letters without a marker are wrong, and so is "A or B". A repeated list of
options gets no reward unless an answer follows it. The text of an option is compared without marks, spaces and LaTeX
commands for fonts at its ends, with all spaces equal, and ignoring case and an article unless they distinguish two
options. A text that several options share names none. A single ASCII letter is never read as an option's text. Only
ASCII letters are read. The prompt is not read.

The ground truth, in the column `answer`: a letter; an index from 0 (an `int`); a string of digits, which is a label
that counts from 1 (as in ARC); or the exact text of an option in `choices`. `choices` is a list of the options' texts,
or ARC's `{"text": [...], "label": [...]}`; the answer then refers to its labels.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from string import ascii_uppercase
from typing import Any

from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.fields import Field, answer_fields, check_words, sentence_end
from hf_rlae.rewards.letter_reader import AMBIGUOUS, WINDOW, LetterReader
from hf_rlae.rewards.registry import register_tasks
from hf_rlae.rewards.retractions import is_second_box, rejection_end
from hf_rlae.rewards.rule import Row, RuleReward

ANSWER_WORDS = ("answer", "choice", "option")
"""The words that announce an answer, unless the reward is told others."""


def extract_letter(
    text: str,
    choices: Sequence[str] | None = None,
    num_choices: int = 26,
    answer_words: Sequence[str] = ANSWER_WORDS,
    is_marked: bool = False,
) -> str | None:
    """The letter that a text gives as its answer, by the rule of this module.

    Args:
        text (`str`): any string, without reasoning.
        choices (`Sequence[str]`, *optional*): the options' texts.
        num_choices (`int`, defaults to 26): number of options if `choices` is not given.
        answer_words (`Sequence[str]`): the words that announce an answer.
        is_marked (`bool`, defaults to `False`): whether the text is a field, such as the content of an answer tag.

    Returns:
        `str` or `None`: a capital; `None` if the text has no answer.

    Example:

    >>> extract_letter("Let me see. The answer is (b)."), extract_letter("A or B"), extract_letter("A dog.")
    ('B', None, None)
    >>> [extract_letter(text, choices=["Rome", "Paris"]) for text in ("The answer is Paris.", "It's Paris!")]
    ['B', 'B']
    """
    found = _named(text, LetterReader(choices, num_choices), answer_words, is_marked)
    return None if found == AMBIGUOUS else found


def _named(text: str, reader: LetterReader, answer_words: Sequence[str], is_marked: bool = False) -> str | None:
    """The letter that a text names, or `AMBIGUOUS`; `None` if it names none."""
    fields = [*answer_fields(text, answer_words), *([Field("tag", 0, len(text))] if is_marked else [])]
    for field in fields:
        rejected = rejection_end(text, field)
        if rejected is not None or is_second_box(text, field):
            return reader.read_text(text[rejected:]) if rejected is not None else AMBIGUOUS
        end = sentence_end(text, field.start, field.end) if field.kind == "phrase" else field.end
        found = reader.read_field(text[field.start : min(end, field.start + WINDOW)])
        if found:
            return found
    return reader.read_text(text)


class LetterReward(RuleReward):
    """1.0 if a text names the option that the column `answer` names, else 0.0.

    The module's docstring states the rule, and what `answer` and `choices` may be.

    Args:
        num_choices (`int`, defaults to 26): number of options in rows without `choices`.
        name (`str`, defaults to `"letter_reward"`): its `__name__`.
        answer_words (`Sequence[str]`, *optional*): the words that announce an answer before "is" or a colon, such as
            `["answer", "Antwort"]`; "answer", "choice" and "option" by default.
        reading: the options of `AnswerRule`.

    Example:

    >>> reward = LetterReward()
    >>> texts = ["(B)", "The answer is 4.", "C"]
    >>> reward(prompts=["?"] * 3, completions=texts, answer=["B", 1, "2"], choices=[["3", "4"]] * 3)
    [1.0, 1.0, 0.0]
    """

    further_columns = ("choices",)

    def __init__(
        self,
        num_choices: int = 26,
        name: str = "letter_reward",
        *,
        answer_words: Sequence[str] = ANSWER_WORDS,
        **reading: Any,
    ) -> None:
        super().__init__(name, **reading)
        self.num_choices = num_choices
        self.answer_words = check_words("answer_words", answer_words)

    def may_answer(self, text: str, batch: Batch, row: int) -> bool:
        """See `AnswerRule.may_answer`."""
        texts, _ = _options_of(Row(self.__name__, row, batch.row(row, self.further_columns)))
        return _named(text, LetterReader(texts, self.num_choices), self.answer_words) is not None

    def reference(self, answer: Any, row: Row) -> str:
        """See `RuleReward.reference`."""
        texts, labels = _options_of(row)
        letters = ascii_uppercase[: self.num_choices if texts is None else len(texts)]
        found = _letter_of(answer, texts or [], labels)
        if found is None or not 0 <= found < len(letters):
            expected = f"a letter from A to {letters[-1]}, an index from 0, a label from '1', or the text of an option"
            raise row.unreadable(answer, expected)
        return letters[found]

    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """See `RuleReward.is_right`."""
        texts, _ = _options_of(row)
        return extract_letter(text, texts, self.num_choices, self.answer_words, row.is_marked) == reference


def _options_of(row: Row) -> tuple[list[str] | None, list[str]]:
    """The options' texts, and their labels if they have ARC's form."""
    if "choices" not in row.columns:
        return None, []
    given = row.columns["choices"]
    texts: Any
    texts, labels = (given.get("text"), given.get("label", [])) if isinstance(given, Mapping) else (given, [])
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not 0 < len(texts) <= 26 or not all(isinstance(text, str) for text in texts):
        raise row.unreadable(given, "1 to 26 texts, or {'text': [...], 'label': [...]}", "choices")
    return list(texts), [str(label).upper() for label in labels]


def _letter_of(answer: Any, texts: list[str], labels: list[str]) -> int | None:
    if isinstance(answer, Integral) and not isinstance(answer, bool):
        return int(answer)
    if not isinstance(answer, str):
        return None
    bare = answer.strip(" \t\n().:*").upper()
    if bare in labels:
        return labels.index(bare)
    if len(bare) == 1 and bare in ascii_uppercase:
        return ascii_uppercase.index(bare)
    if bare.isascii() and bare.isdigit() and len(bare) <= 2:
        return int(bare) - 1
    exact = [at for at, text in enumerate(texts) if text == answer]
    return exact[0] if len(exact) == 1 else None


register_tasks(lambda name: LetterReward(name=name), ("letter", "mmlu", "arc_challenge", "gpqa", "piqa"))
