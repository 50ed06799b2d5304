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
   answer tag on one line is a field too.
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

import re
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from numbers import Integral
from string import ascii_uppercase
from typing import Any

from hf_rlae.rewards.fields import Field, answer_fields, check_words, corrected, sentence_end
from hf_rlae.rewards.registry import register_tasks
from hf_rlae.rewards.rule import Row, RuleReward

ANSWER_WORDS = ("answer", "choice", "option")
"""The words that announce an answer, unless the reward is told others."""

_WINDOW = 2_000
_AMBIGUOUS = "?"
_MOST_MENTIONS = 8
_MOST_LETTERS = 64

_ALONE = re.compile(r"(?<!\w)(?<!\w['’])[A-Za-z](?![\w+#-]|['’]\w)")
_MARKED = re.compile(r"[.:,;*_`'\"’”»)\]}：）。]|\s*(?:\n|\Z)")
_AFTER_WORD = re.compile(
    r"[ \t]+(?:(?:because|since|as|and|or|but|for|which|is|not|seems|would|here|then|based|due)\b|[-–—=(])",
    re.IGNORECASE,
)
_WRAPPER = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|bf|rm)[ ]?\{"
_WRAPPERS = re.compile(_WRAPPER)
_OPENING = re.compile(
    rf"[\s*_`\"'“«(\[{{$（>#•-]*+(?:{_WRAPPER})?(?:(?:option|choice|answer)\s)?[(*\s]{{0,3}}", re.IGNORECASE
)
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|unlike|anything\sbut|rather\sthan|instead\sof|"
    r"(?:wrong|incorrect|false|worst)\s(?:answer|option|choice|one)\s(?:is|was|would\sbe))|n['’]t)"
    r"\s{0,2}(?:be\s)?(?:(?:option|choice|the|an?)\s)?[\s*_`\"'(\[]{0,4}\Z",
    re.IGNORECASE,
)
_REFUTED = re.compile(
    r"[\s*_`\"')\].:]{0,4}(?:(?:is|was|are|were|seems|must be|would be)\s(?:(?:also|clearly|definitely|simply|just)\s)?"
    r"(?:not\b|n['’]t|wrong|incorrect|false|impossible|out\b|eliminated|ruled|excluded|unlikely)|(?:is|was|ca|could|does)n['’]t\b"
    r"|cannot\b|can\snot\b|does\snot\b|\?)",
    re.IGNORECASE,
)
_JOINED = re.compile(
    r"[\s*_`\"')\]}.]{0,4}(?:[,/&]|\b(?:or|and|nor)\b)[\s,*_`\"'(\[]{0,4}"
    r"(?:(?:or|and|nor|option|choice|maybe|perhaps|possibly|even|also)\s){0,3}"
    r"[*_`\"'(\[]{0,3}(?P<other>[A-Za-z])(?![\w'’+#-])",
    re.IGNORECASE,
)
_LISTED = re.compile(r"(?<![\w'’])([A-Z])[).:](?!\w)[*\s]*")
_VERB = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|had|can|cannot|could|would|will|might|may|seems?)(?:n['’]t)?\b",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"(?:\((?:\*\*)?|\[|\*\*|{_WRAPPER}|\b(?:option|choice|letter|answer|ans\.?|choose|pick|select|say|go\swith|going\swith|stick\swith|is|be|it['’]s|so|thus|"
    r"hence|therefore|then|but|definitely|probably|clearly|certainly|surely)[\s,:]{1,3}[(*]{0,3})"
    r"(?P<letter>[A-Za-z])(?![\w'’+#-])",
    re.IGNORECASE,
)
_PRAISED = re.compile(
    r"(?<![\w'’])(?P<letter>[A-Z])[\s*_`\"')\].]{1,4}(?:is|must be|seems|would be)\s"
    r"(?:(?:clearly|definitely|probably)\s)?(?:the\s)?(?:correct|right|best|answer|true|most)\b"
)
_JOINED_OPTION = re.compile(r"[\s,/&]*(?:[,/&]|\b(?:or|and|nor)\b)\s*(?:(?:the|an?|maybe|perhaps)\s)*")
_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)
_NUMERIC_BEFORE = re.compile(r"(?:[-−]|\d[.,])\Z")
_DECIMALS = re.compile(r"[.,]\d")
_EDGES = " \t\r\n*_`\"'“”‘’«»$.,;:!?()[]{}"


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
    reader = _Reader(choices, num_choices)
    fields = [*answer_fields(text, answer_words), *([Field("tag", 0, len(text))] if is_marked else [])]
    for field in fields:
        end = sentence_end(text, field.start, field.end) if field.kind == "phrase" else field.end
        found = reader.read_field(text[field.start : min(end, field.start + _WINDOW)])
        if found:
            break
    else:
        found = reader.read_text(text)
    return None if found == _AMBIGUOUS else found


class _Reader:
    """Reads the letters of one row's options. Methods return a capital, `"?"` if ambiguous, or `None` for nothing."""

    def __init__(self, choices: Sequence[str] | None, num_choices: int) -> None:
        self.letters = ascii_uppercase[: num_choices if choices is None else len(choices)]
        self.has_texts = choices is not None
        self.texts = dict(zip(self.letters, map(_bare, choices or ()), strict=False))
        self.options = [(_plain(text), letter) for letter, text in self.texts.items() if text]

    def read_field(self, content: str) -> str | None:
        bare = _bare(content)
        named = self._option(bare)
        if named:
            return named
        for match in islice(_ALONE.finditer(content), _MOST_LETTERS):
            found = self._letter(content, match)
            if found:
                return found
        return self._option_at_start(_plain(bare)) or self._only_text(content)

    def _option_at_start(self, bare: str) -> str | None:
        begun = [option for option, _ in self.options if _begins(bare, option)]
        longest = max(begun, key=len, default="")
        named = [letter for option, letter in self.options if option == longest]
        joined = _JOINED_OPTION.match(bare, len(longest))
        rest = bare[joined.end() :] if joined else ""
        is_joined = any(_begins(rest, option) for option, letter in self.options if letter not in named)
        if begun and (len(named) > 1 or is_joined):
            return _AMBIGUOUS
        return named[0] if begun else None

    def read_text(self, text: str) -> str | None:
        stripped = text.strip()
        if len(stripped) <= _WINDOW:
            named = self._option(_bare(stripped))
            if named:
                return named
        head, tail = stripped[:_WINDOW], stripped[-_WINDOW:]
        again = corrected(head)
        return (
            (self._at_start(again) if again else None)
            or self._at_start(head)
            or self._last_line(stripped)
            or self._only_one(tail)
            or self._only_text(tail)
        )

    def _at_start(self, head: str) -> str | None:
        opening = _OPENING.match(head)
        match = _ALONE.match(head, opening.end() if opening else 0)
        found = self._letter(head, match) if match else None
        if not found or found == _AMBIGUOUS:
            return found
        praised = self._named(head, (_PRAISED,))
        if len(praised) == 1:
            return praised.pop()
        listed = [letter for letter in self._listed(head) if letter != found]
        return None if listed and listed[0] > found else found  # "B. ... because A. ..." is no list of options

    def _listed(self, text: str) -> list[str]:
        """The letters of options that a text repeats: those that their option's text follows, or no verb."""
        found = []
        for match in _LISTED.finditer(text):
            rest = _plain(text[match.end() : match.end() + 200])
            if match[1] not in self.letters:
                continue
            option = _plain(self.texts.get(match[1], ""))
            if _begins(rest, option) if self.has_texts and option else not _VERB.match(rest):
                found.append(match[1])
        return found

    def _last_line(self, stripped: str) -> str | None:
        start = stripped.rfind("\n") + 1
        line = stripped[start:][:_WINDOW]
        bare = _bare(line)
        if len(bare) == 1 and bare.upper() in self.letters:
            return bare.upper()
        listed = _LISTED.match(bare)
        if listed and listed[1] in self._listed(stripped[max(0, start - _WINDOW) : start]):
            return listed[1]  # an option is repeated twice: in the list, and as the answer
        return self._option(bare)

    def _only_one(self, tail: str) -> str | None:
        named = self._named(tail, (_NAMED, _PRAISED))
        return named.pop() if len(named) == 1 else None

    def _named(self, text: str, patterns: tuple[re.Pattern[str], ...]) -> set[str]:
        """The letters that patterns find and that nothing negates or refutes; none if there are too many to look at."""
        named: set[str] = set()
        matches = chain.from_iterable(pattern.finditer(text) for pattern in patterns)
        for seen, match in enumerate(matches):
            if seen == _MOST_LETTERS:
                return set()
            letter, start, end = match["letter"], match.start("letter"), match.end("letter")
            is_plain = letter.isupper() and (letter not in "AI" or (letter == "A" and _AFTER_WORD.match(text, end)))
            counts = letter.upper() in self.letters and (is_plain or _MARKED.match(text, end))
            if counts and not (_negated(text, match.start()) or _negated(text, start) or _REFUTED.match(text, end)):
                named.add(letter.upper())
        return named

    def _only_text(self, content: str) -> str | None:
        """The only option whose text occurs, except after "not" and inside the text of a longer one."""
        folded = content.casefold()
        found: dict[str, list[tuple[int, int]]] = {}
        for option, letter in self.options:
            at = -1
            for _ in range(_MOST_MENTIONS):
                at = folded.find(option, at + 1)
                if at < 0:
                    break
                end = at + len(option)
                is_long = len(option) > 1 or option.isdigit()
                if is_long and _stands_alone(folded, at, end) and not _negated(folded, at):
                    found.setdefault(letter, []).append((at, end))
        spans = [span for each in found.values() for span in each]
        named = [
            letter
            for letter, each in found.items()
            if not all(any(o[0] <= s[0] and s[1] <= o[1] and o != s for o in spans) for s in each)
        ]
        return named[0] if len(named) == 1 else None

    def _option(self, bare: str) -> str | None:
        """The only option with exactly this text; a single letter is not a text."""
        if not bare or (len(bare) == 1 and bare.isascii() and bare.isalpha()):
            return None
        named = [letter for letter, text in self.texts.items() if text == bare]
        named = named or [letter for letter, text in self.texts.items() if text.casefold() == bare.casefold() and text]
        named = named or [letter for option, letter in self.options if option == _plain(bare)]
        return named[0] if len(named) == 1 else None

    def _letter(self, content: str, match: re.Match[str]) -> str | None:
        start, end = match.span()
        if not self._counts(content, start) or _negated(content, start) or _REFUTED.match(content, end):
            return None
        letter = match[0].upper()
        joined = _JOINED.match(content, end)
        if joined and joined["other"].upper() != letter and self._counts(content, joined.start("other")):
            return _AMBIGUOUS
        return letter

    def _counts(self, content: str, at: int) -> bool:
        char = content[at]
        if char.upper() not in self.letters:
            return False
        is_marked = _MARKED.match(content, at + 1) is not None
        if char.isupper():
            return is_marked or char not in "AI" or _AFTER_WORD.match(content, at + 1) is not None
        opening = _OPENING.match(content)
        is_first = opening is not None and opening.end() == at
        is_bracketed = content[at - 1 : at] in ("(", "[", "{", "（") and is_marked
        return is_bracketed or (is_first and (is_marked or char not in "ai"))


def _negated(content: str, at: int) -> bool:
    return _NEGATION.search(content[max(0, at - 40) : at]) is not None


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether a part of a text is no part of a longer word or number."""
    is_inside = text[max(0, start - 1) : start].isalnum() or text[end : end + 1].isalnum()
    is_number = text[start].isdigit() and _NUMERIC_BEFORE.search(text, max(0, start - 2), start)
    return not (is_inside or is_number or _DECIMALS.match(text, end))


def _bare(text: str) -> str:
    return " ".join(_WRAPPERS.sub("", text).strip(_EDGES).split())


def _plain(text: str) -> str:
    """The form in which texts of options are looked for: no capitals, and no article at the beginning."""
    return _ARTICLE.sub("", text.casefold(), count=1) if _ARTICLE.match(text) else text.casefold()


def _begins(bare: str, option: str) -> bool:
    return bool(option) and bare.startswith(option) and not bare[len(option) : len(option) + 1].isalnum()


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
