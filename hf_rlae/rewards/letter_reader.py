"""Reads the letter that a text or a field names. `hf_rlae.rewards.letter_rule` states the rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, islice
from string import ascii_uppercase

from hf_rlae.rewards.fields import corrected

WINDOW = 2_000
AMBIGUOUS = "?"
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
    r"(?:\b(?:(?:can)?not|never|neither|nor|except|unlike|anything\sbut|rather\sthan|instead\sof|"
    r"(?:wrong|incorrect|false|worst)\s(?:answer|option|choice|one)\s(?:is|was|would\sbe))|n['’]t)"
    r"\s{0,2}(?:be\s)?(?:(?:option|choice|the|an?)\s)?[\s*_`\"'(\[]{0,4}\Z",
    re.IGNORECASE,
)
_REFUTED = re.compile(
    r"[\s*_`\"')\].:]{0,4}(?:(?:is|was|are|were|seems|must be|would be)\s(?:(?:also|clearly|definitely|simply|just)\s)?"
    r"(?:not\b|n['’]t|(?:(?:an?|the)\s)?(?:wrong|incorrect|false)|impossible|out\b|eliminated|ruled|excluded|unlikely)|(?:is|was|ca|could|does)n['’]t\b"
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


class LetterReader:
    """Reads the letters of one row's options.

    Methods return a capital, `AMBIGUOUS`, or `None` for nothing.

    Args:
        choices (`Sequence[str]`, *optional*): the options' texts.
        num_choices (`int`): number of options if `choices` is not given.
    """

    def __init__(self, choices: Sequence[str] | None, num_choices: int) -> None:
        self.letters = ascii_uppercase[: num_choices if choices is None else len(choices)]
        self.has_texts = choices is not None
        self.texts = dict(zip(self.letters, map(_bare, choices or ()), strict=False))
        self.options = [(_plain(text), letter) for letter, text in self.texts.items() if text]

    def read_field(self, content: str) -> str | None:
        bare = _bare(content)
        again = corrected(content)
        named = self._option(bare) or (self.read_field(again) if again else None)
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
            return AMBIGUOUS
        return named[0] if begun else None

    def read_text(self, text: str) -> str | None:
        stripped = text.strip()
        if len(stripped) <= WINDOW:
            named = self._option(_bare(stripped))
            if named:
                return named
        head, tail = stripped[:WINDOW], stripped[-WINDOW:]
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
        if not found or found == AMBIGUOUS:
            return found
        first, *lines = map(_bare, head.split("\n"))
        others = {line.upper() for line in lines if len(line) == 1} & set(self.letters) if len(first) == 1 else set()
        if others - {found}:
            return AMBIGUOUS  # letters below each other
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
        line = stripped[start:][:WINDOW]
        bare = _bare(line)
        if len(bare) == 1 and bare.upper() in self.letters:
            return bare.upper()
        listed = _LISTED.match(bare)
        if listed and listed[1] in self._listed(stripped[max(0, start - WINDOW) : start]):
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
                refuted = _REFUTED.match(folded, end)
                is_denied = _negated(folded, at) or (refuted and not refuted[0].endswith("?"))
                if is_long and _stands_alone(folded, at, end) and not is_denied:
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
            return AMBIGUOUS
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
    bare = _WRAPPERS.sub("", text) if "\\" in text else text
    return " ".join(bare.strip(_EDGES).split())


def _plain(text: str) -> str:
    """The form in which texts of options are looked for: no capitals, and no article at the beginning."""
    folded = text.casefold()
    has_article = folded.startswith(("a", "the")) and _ARTICLE.match(text)
    return _ARTICLE.sub("", folded, count=1) if has_article else folded


def _begins(bare: str, option: str) -> bool:
    is_beginning = bool(option) and bare.startswith(option) and not bare[len(option) : len(option) + 1].isalnum()
    return is_beginning and not (option[-1].isdigit() and _DECIMALS.match(bare, len(option)))
