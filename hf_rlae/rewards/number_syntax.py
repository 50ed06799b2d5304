r"""The syntax of numbers, and their exact values.

A number has these parts, in this order and with nothing between them but what is shown (␣ is an optional space):

1. an optional sign: `+`, `-` or another minus sign (`−`, `–`, `﹣`, `－`), or "minus" or "negative". A sign touches
   what follows, and no letter, digit, percent sign or closing bracket precedes it, so `10-4` holds 10 and 4. A minus
   sign with a space behind it, and a word, count only where no operand can precede them: after "is", `=`, a colon, an
   opening bracket and the like ("is - 5", "equals minus 5"); in `20 - 5` and "20 minus 5" they are operators, and at
   the beginning of a line `- 5` is an item of a list.
2. an optional currency sign: `$`, `\$`, `€`, `£`, `¥`, `₹`, `₩`, with an optional space; the sign may follow it.
3. one of
   * digits of any script, with `.` before decimals; `.5` is 0.5 and `12.` is 12. Thousands are separated by `,`, `{,}`,
     `,\!`, `\,`, `'`, `_`, or a space that does not break (thin, narrow, figure, `~`, `\ `), in full groups of three
     after one to three digits. `1 200` with a plain space is two numbers, unless a field holds nothing else.
   * such a number and an exponent: `3e5`, `3 x 10^5`, `10^5`, `10^{-3}`.
   * a fraction `1/2`, `1␣/␣2`, `\frac{1}{2}`, `\frac12`, `\frac{1}2`, `½`; its parts have at most 100 digits.
   * a mixed number: digits, then a fraction: `1 1/2`, `1 and 1/2`, `1½`, `1\frac{1}{2}`.
4. optional magnitudes: "hundred", "thousand", "million", "billion", "trillion" (also plural, and in `\text{}`), or a
   touching `k`; after an amount of money also `M`, `mn`, `B`, `bn`. "1.5 million" is 1,500,000. "Dozen" is a unit.

Digits after a letter or `_` belong to a name (`H2O`, `x_1`), and digits after `^` to a power (`m^2`, `x^{2}`); they are
not numbers. Units and `%` after a number do not change it: `50%` is 50, `12kg` is 12. Words (`twelve`), roman numerals
and infinities are not numbers.

A run of digits that is none of these cannot be read: dates, times and ratios (`1/2/2020`, `12:30`), other groupings
(`1,23`, `12,34,567`), two points (`1.2.3`), other powers (`2^3`, `2**3`, `10²`), a denominator of zero, more than
4,000 digits, and exponents beyond those of Python's `decimal` (18 digits).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Any

Number = Decimal | Fraction
"""An exact value. Python compares the two kinds exactly, and huge exponents without writing them out."""

MOST_DIGITS = 4_000
_FRACTION_DIGITS = 100
_EXPONENT_DIGITS = 18

_SIGNS = "-+−–﹣－＋"
_SIGN = f"[{_SIGNS}]"
_CURRENCY = r"\\?[$€£¥₹₩][ ]?"
_SEPARATOR = r"(?:(?:,|\{,\})(?:\\!)?|\\[,;: ]|[\u00a0\u2007\u2009\u202f'’_~])"
_BODY = rf"\d++(?:(?:{_SEPARATOR}|[.:])\d++)*+"
_SLASH = r"[/⁄∕]"
_SHORT = rf"\d{{1,{_FRACTION_DIGITS}}}+"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"


def _latex_fraction(prefix: str) -> str:
    above = rf"(?:\{{[ ]?(?P<{prefix}n>{_SIGN}?{_BODY})[ ]?\}}|(?P<{prefix}n1>\d))"
    below = rf"(?:\{{[ ]?(?P<{prefix}d>{_BODY})[ ]?\}}|(?P<{prefix}d1>\d))"
    return rf"\\(?:[dtc]|nice|s)?frac[ ]?{above}[ ]?{below}"


NUMBER = re.compile(
    rf"""
    (?=[\d.\\$€£¥₹₩{_SIGNS[1:]}{_VULGAR}-])  # quick: most characters begin no number
    (?: (?<![\w)\]}}%]) (?P<sign>{_SIGN}) )?
    (?: (?P<money>{_CURRENCY}) (?P<late_sign>{_SIGN})? )?
    (?:
        {_latex_fraction("frac_")}
      | (?P<alone>[{_VULGAR}])
      | (?<![A-Za-z_\d^]) (?<!\^\{{) (?P<body>{_BODY}) (?:
            (?P<vulgar>[{_VULGAR}])
          | (?:[ ]and)?[ ](?P<mn>{_SHORT})[ ]?{_SLASH}[ ]?(?P<md>{_SHORT})(?![\d/])
          | [ ]?{_latex_fraction("tail_")}
          | (?P<slashes>(?:[ ]?{_SLASH}[ ]?{_BODY})++)
          | [eE](?P<e>[-+−]?\d++)
          | [ ]?(?:×|x|\*|·|\\times|\\cdot)[ ]?10[ ]?(?:\^|\*\*)[ ]?\{{?(?P<ten>[-+−]?\d++)\}}?
          | (?:\^|\*\*)\{{?(?P<power>[-+−]?\d++)\}}?
          | (?P<raised>[⁰¹²³⁴⁵⁶⁷⁸⁹⁻])
        )?
      | (?<![\w.]) (?P<point>\.\d++)
    )
    """,
    re.VERBOSE,
)
"""Finds what begins like a number; `found_number` says whether it is one."""

_WRAPPER = r"\\(?:text|mathrm|textbf|mathbf|textit|mathit)[ ]?\{[ ]?"
_GAP = r"(?:[ \t\u00a0\u202f~]|\\[ ,;:!])"
_SIGN_APART = re.compile(
    rf"""
    (?:
        (?: \A | [.!?;:,=(\[{{$"'“#>|*_`≈\n]
          | \b(?:is|was|are|be|equals?|to|at|of|and|or|than|gets?|got|gives?|by|not)\b )
        [\s*_`$({{]{{0,4}} (?:{_WRAPPER})? (?P<sign>(?i:minus|negative)) (?:{_GAP}{{1,2}}\}}?|\}}{_GAP}{{1,2}})
      | (?: [=:(\[{{$#≈] | \b(?:is|was|are|be|equals?)\b ) [ $*({{]{{0,3}}
        (?P<minus>[-−–﹣－]) (?: {_GAP}{{1,2}} | (?=[({{]) )
    )
    [$*_`({{]{{0,3}} \Z
    """,
    re.VERBOSE,
)
_SIGN_NEAR = re.compile(r"[-−–﹣－]|(?:inus|INUS|egative|EGATIVE)\b")
_MAGNITUDE = re.compile(
    rf"[kK](?![\w'’/^])|(?:{_GAP}|{_WRAPPER}|-){{0,4}}(?P<word>(?i:hundred|thousand|million|billion|trillion))s?"
    r"(?![A-Za-z])(?:[ ]?\})?"
)
_MONEY_MAGNITUDE = re.compile(r"[ ]?(?P<word>[MmBb]n?)(?![\w'’])")
_POWERS = {"k": 3, "m": 6, "mn": 6, "b": 9, "bn": 9}
_POWERS |= {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MOST_MAGNITUDES = 3
_SPACED = re.compile(
    rf"[\s*_`$({{\"'“]{{0,4}}(?:{_WRAPPER})?(?P<sign>{_SIGN})?(?:{_CURRENCY})?"
    r"(?P<body>\d{1,3}(?: \d{3})++(?:\.\d++)?)"
    rf"(?:[*_`$ ]{{0,4}}(?:\\?%|[€£¥₹₩]|{_WRAPPER})?[ ]?(?!(?:and|or|to)\b)[^\W\d_]{{0,20}})?[\s*_`$)}}\"'”.]{{0,6}}"
)

_PLAIN = re.compile(rf"(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})++|\d++)(?:\.\d++)?+")
_LONE = re.compile(r"\s*+\$?(?<![A-Za-z_\d^])((?:[0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,40})(?:\.[0-9]{1,40})?)\s*+")
_GROUPING = re.compile(_SEPARATOR)
ONE_DIGIT = re.compile(rf"[\d{_VULGAR}]")


@dataclass(frozen=True)
class Found:
    """A number in a text.

    Attributes:
        start (`int`), end (`int`): positions in the text, with sign and magnitude.
        value (`Number` or `None`): `None` if it begins like a number and cannot be read.
    """

    start: int
    end: int
    value: Number | None


def find_numbers(text: str, start: int, end: int) -> Iterator[Found]:
    """The numbers in `text[start:end]`.

    Example:

    >>> [found.value for found in find_numbers("$1,200.50 or 1/3 of 12:30; minus 1.5 million", 0, 44)]
    [Decimal('1200.50'), Fraction(1, 3), None, Decimal('-1.5E+6')]
    """
    return (found_number(match, end) for match in NUMBER.finditer(text, start, end))


def found_number(match: re.Match[str], end: int) -> Found:
    """The number that a match of `NUMBER` begins, in a text that is read up to `end`."""
    text, stop = match.string, match.end()
    value = _decimal(match["body"]) if match.lastgroup == "body" else _unsigned(match.groupdict())
    sign, late_sign = match["sign"], match["late_sign"]
    is_minus = _is_minus(sign) != _is_minus(late_sign)
    apart = None
    if not (sign or late_sign) and _SIGN_NEAR.search(text, max(0, match.start() - 16), match.start()):
        apart = _SIGN_APART.search(text, max(0, match.start() - 48), match.start())
    for _ in range(_MOST_MAGNITUDES):
        magnitude = _MAGNITUDE.match(text, stop, end) or (match["money"] and _MONEY_MAGNITUDE.match(text, stop, end))
        if not magnitude:
            break
        stop, value = magnitude.end(), _scaled(value, _POWERS[(magnitude["word"] or "k").lower()])
    if value is not None and (is_minus or apart):
        value = value.copy_negate() if isinstance(value, Decimal) else -value  # `-` would round a `Decimal`
    return Found(apart.start(apart.lastgroup or 0) if apart else match.start(), stop, value)


def _scaled(value: Number | None, power: int) -> Number | None:
    if not isinstance(value, Decimal):
        return None if value is None else value * 10**power
    sign, digits, exponent = value.as_tuple()
    try:
        return Decimal((sign, digits, int(exponent) + power))  # `*` would round
    except InvalidOperation:
        return None


def spaced_thousands(text: str, start: int, end: int) -> Number | None:
    """The number `12 000` if `text[start:end]` holds nothing else but a unit, signs of currency and marks around it.

    Example:

    >>> spaced_thousands("**12 000** km.", 0, 14), spaced_thousands("12 000 and 1", 0, 12)
    (Decimal('12000'), None)
    """
    found = _SPACED.fullmatch(text, start, end)
    if found is None:
        return None
    value = _decimal(found["body"].replace(" ", ""))
    return value.copy_negate() if value is not None and _is_minus(found["sign"]) else value


def lone_number(text: str, start: int, end: int) -> Number | None:
    """The number if `text[start:end]` holds nothing but a dollar sign and ASCII digits: the quick way for most fields.

    Example:

    >>> lone_number(" $1,200.50", 0, 10), lone_number("12 km", 0, 5)
    (Decimal('1200.50'), None)
    """
    found = _LONE.fullmatch(text, start, end)
    return None if found is None else Decimal(found[1].replace(",", ""))


def _unsigned(part: Mapping[str, Any]) -> Number | None:
    """The value without its sign, from the groups of `NUMBER`."""
    if part["body"]:
        return _with_body(part["body"], part)
    if part["point"]:
        return _decimal("0" + part["point"])
    if part["alone"]:
        return _vulgar(part["alone"])
    return _ratio(part["frac_n"] or part["frac_n1"], part["frac_d"] or part["frac_d1"])


def _with_body(body: str, part: Mapping[str, Any]) -> Number | None:
    """The value of digits and what follows them."""
    if part["raised"]:
        return None
    if part["slashes"]:
        parts = re.split(_SLASH, part["slashes"])
        return _ratio(body, parts[1].strip()) if len(parts) == 2 else None
    if part["power"]:
        return _decimal("1", part["power"]) if _ascii(body) == "10" else None
    if part["vulgar"]:
        return _mixed(body, _vulgar(part["vulgar"]))
    above, below = part["mn"] or part["tail_n"] or part["tail_n1"], part["md"] or part["tail_d"] or part["tail_d1"]
    return _mixed(body, _ratio(above, below)) if above else _decimal(body, part["e"] or part["ten"] or "0")


def _is_minus(sign: str | None) -> bool:
    return bool(sign) and sign not in ("+", "＋")


def _ascii(digits: str) -> str:
    if digits.isascii():
        return digits
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in digits)


def _plain(body: str) -> str | None:
    """Digits and at most one point, in ASCII, without separators; `None` if the digits are grouped otherwise."""
    if len(body) > 2 * MOST_DIGITS or not _PLAIN.fullmatch(body):
        return None
    plain = _ascii(_GROUPING.sub("", body))
    return plain if len(plain) <= MOST_DIGITS else None


def _decimal(body: str, exponent: str = "0") -> Decimal | None:
    plain = _plain(body)
    if plain is None or len(exponent) > _EXPONENT_DIGITS:
        return None
    try:
        return Decimal(f"{plain}e{_ascii(exponent.replace('−', '-'))}")
    except InvalidOperation:
        return None


def _ratio(numerator: str, denominator: str) -> Fraction | None:
    above, below = _plain(numerator.lstrip(_SIGNS)), _plain(denominator)
    if above is None or below is None or max(len(above), len(below)) > _FRACTION_DIGITS or not below.strip("0."):
        return None
    value = Fraction(above) / Fraction(below)
    return -value if numerator[0] in _SIGNS and _is_minus(numerator[0]) else value


def _vulgar(char: str) -> Fraction:
    above, below = unicodedata.normalize("NFKC", char).split("⁄")
    return Fraction(int(above), int(below))


def _mixed(whole: str, part: Fraction | None) -> Fraction | None:
    plain = _plain(whole)
    if part is None or plain is None or "." in plain or len(plain) > _FRACTION_DIGITS:
        return None
    return int(plain) + part


def number_of(value: Any) -> Number | None:
    """The exact value of a Python number.

    A `float` means the decimal that it is printed as: 0.1 is one tenth.

    Args:
        value (`int`, `float`, `Decimal`, `Fraction`): or numpy's.

    Returns:
        `Number` or `None`: `None` if it is infinite, NaN, a `bool`, or longer than numbers in texts may be.

    Example:

    >>> number_of(12.50) == number_of(Fraction(25, 2)), number_of(float("nan"))
    (True, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return Decimal(int(value)) if abs(int(value)) < 10**MOST_DIGITS else None
    if isinstance(value, Rational):
        fraction = Fraction(value)
        is_short = max(abs(fraction.numerator), fraction.denominator) < 10**_FRACTION_DIGITS
        return fraction if is_short else None
    if isinstance(value, Real):
        value = Decimal(repr(float(value)))
    return value if isinstance(value, Decimal) and value.is_finite() else None


def last_digit(text: str) -> int:
    """The place of the last digit (or vulgar fraction), -1 if there is none.

    Digits that are not ASCII are looked for in the last 8,000 characters only, because Python has no quick way.
    """
    at = max(text.rfind(digit) for digit in "0123456789")
    if text.isascii():
        return at
    tail = text[max(at + 1, len(text) - 2 * MOST_DIGITS) :]
    found = ONE_DIGIT.search(tail[::-1])
    return at if found is None else len(text) - 1 - found.start()
