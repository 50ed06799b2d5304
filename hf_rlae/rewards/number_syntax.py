r"""How numbers are written, and their exact values.

A number is, in this order and without anything between but what is shown (␣ is an optional space):

1. a sign, if any: `+`, `-` or another minus sign (`−`, `–`, `﹣`, `－`). It counts where it touches what follows and no
   letter, digit, percent sign or closing bracket stands before it, so `10-4` holds 10 and 4, and `- 5` holds 5.
2. a currency sign, if any: `$`, `\$`, `€`, `£`, `¥`, `₹`, `₩`, with an optional space; the sign may follow it.
3. one of
   * digits of any script, with `.` before decimals; `.5` is 0.5 and `12.` is 12. Thousands are separated by `,`, `{,}`,
     `\,`, a thin, narrow or non-breaking space, in full groups of three after one to three digits. `1 200` with a
     plain space is two numbers.
   * such a number and an exponent: `3e5`, `3 x 10^5`, `10^5`, `10^{-3}`.
   * a fraction `1/2`, `1␣/␣2`, `\frac{1}{2}`, `\frac12`, `½`; its parts have at most 100 digits.
   * a mixed number: digits, then a fraction: `1 1/2`, `1 and 1/2`, `1½`, `1\frac{1}{2}`.

Digits that follow a letter or `_` belong to a name (`H2O`, `x_1`), those after `^` to a power (`m^2`, `x^{2}`); they
are no numbers. Units, `%` and letters after a number do not change it: `50%` is 50, `12kg` is 12. Words (`twelve`),
roman numerals and infinities are no numbers.

A run of digits that is none of these cannot be read: dates, times and ratios (`1/2/2020`, `12:30`), other groupings
(`1,23`, `12,34,567`), two points (`1.2.3`), other powers (`2^3`, `2**3`, `10²`), a denominator of zero, more than
4,000 digits, an exponent of more than 18 digits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Any

Number = tuple[int, str, int] | Fraction
"""A value in its one canonical form: `(sign, digits, exponent)` where it has finitely many decimals, the digits without
zeros at either end; else a `Fraction` in lowest terms. Equal values have equal forms, and comparing is linear."""

MOST_DIGITS = 4_000
_FRACTION_DIGITS = 100
_EXPONENT_DIGITS = 18

_SIGN = r"[-+−–﹣－＋]"
_CURRENCY = r"\\?[$€£¥₹₩][ ]?"
_SEPARATOR = r"(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_BODY = rf"\d++(?:(?:{_SEPARATOR}|[.:])\d++)*+"
_SLASH = r"[/⁄∕]"
_SHORT = rf"\d{{1,{_FRACTION_DIGITS}}}+"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"


def _latex_fraction(prefix: str) -> str:
    braces = rf"\{{[ ]?(?P<{prefix}n>{_SIGN}?{_BODY})[ ]?\}}[ ]?\{{[ ]?(?P<{prefix}d>{_BODY})[ ]?\}}"
    return rf"\\[dtc]?frac[ ]?(?:{braces}|(?P<{prefix}n1>\d)[ ]?(?P<{prefix}d1>\d))"


NUMBER = re.compile(
    rf"""
    (?: (?<![\w)\]}}%]) (?P<sign>{_SIGN}) )?
    (?: {_CURRENCY} (?P<late_sign>{_SIGN})? )?
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
"""Finds what begins like a number; `Token.value` says whether it is one."""

_PLAIN = re.compile(rf"(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})++|\d++)(?:\.\d++)?+")
_GROUPING = re.compile(_SEPARATOR)
_ONE_DIGIT = re.compile(rf"[\d{_VULGAR}]")


@dataclass(frozen=True)
class Token:
    """A place in a text where something like a number stands.

    Attributes:
        start (`int`), end (`int`): characters of the text.
        value (`Number` or `None`): `None` where it cannot be read.
    """

    start: int
    end: int
    value: Number | None


def read_token(found: re.Match[str]) -> Token:
    """The token of a match of `NUMBER`."""
    return Token(found.start(), found.end(), _value(found))


def find_tokens(text: str, start: int, end: int) -> Iterator[Token]:
    """The tokens in `text[start:end]`.

    Example:

    >>> [token.value for token in find_tokens("$1,200.50 or 1/3 of 12:30", 0, 25)]
    [(1, '12005', -1), Fraction(1, 3), None]
    """
    return map(read_token, NUMBER.finditer(text, start, end))


def _value(found: re.Match[str]) -> Number | None:
    part = found.groupdict()
    sign = -1 if _is_minus(part["sign"]) != _is_minus(part["late_sign"]) else 1
    if part["point"]:
        return _decimal(sign, "0" + part["point"])
    if part["alone"]:
        return _exact(sign * _vulgar(part["alone"]))
    if part["frac_n"] or part["frac_n1"]:
        return _over(sign, part["frac_n"] or part["frac_n1"], part["frac_d"] or part["frac_d1"])
    body = part["body"]
    if part["raised"]:
        return None
    if part["slashes"]:
        parts = re.split(_SLASH, part["slashes"])
        return _over(sign, body, parts[1].strip()) if len(parts) == 2 else None
    if part["vulgar"]:
        return _mixed(sign, body, _vulgar(part["vulgar"]))
    above = part["mn"] or part["tail_n"] or part["tail_n1"]
    if above:
        return _mixed(sign, body, _ratio(above, part["md"] or part["tail_d"] or part["tail_d1"]))
    if part["power"]:
        return _decimal(sign, "1", part["power"]) if _ascii(body) == "10" else None
    return _decimal(sign, body, part["e"] or part["ten"] or "0")


def _is_minus(sign: str | None) -> bool:
    return bool(sign) and sign not in ("+", "＋")


def _ascii(digits: str) -> str:
    if digits.isascii():
        return digits
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in digits)


def _plain(body: str) -> str | None:
    """Digits and at most one point, in ASCII, without separators; `None` where a body is grouped otherwise."""
    if len(body) > 2 * MOST_DIGITS or not _PLAIN.fullmatch(body):
        return None
    plain = _ascii(_GROUPING.sub("", body))
    return plain if len(plain) <= MOST_DIGITS else None


def _decimal(sign: int, body: str, exponent: str = "0") -> Number | None:
    plain = _plain(body)
    if plain is None or len(exponent) > _EXPONENT_DIGITS:
        return None
    whole, _, decimals = plain.partition(".")
    return _canonical(sign, whole + decimals, int(_ascii(exponent.replace("−", "-"))) - len(decimals))


def _canonical(sign: int, digits: str, exponent: int) -> Number:
    digits = digits.lstrip("0")
    kept = digits.rstrip("0")
    return (sign, kept, exponent + len(digits) - len(kept)) if kept else (0, "", 0)


def _exact(value: Fraction) -> Number:
    """The canonical form of a fraction: decimals where its denominator has no other factors than 2 and 5."""
    rest, places = value.denominator, 0
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest //= factor
            count += 1
        places = max(places, count)
    if rest != 1:
        return value
    digits = abs(value.numerator) * 10**places // value.denominator
    return _canonical(-1 if value < 0 else 1, str(digits), -places)


def _ratio(numerator: str, denominator: str) -> Fraction | None:
    negative = _is_minus(numerator[0]) if numerator[0] in "-+−–﹣－＋" else False
    above, below = _plain(numerator.lstrip("-+−–﹣－＋")), _plain(denominator)
    if above is None or below is None or max(len(above), len(below)) > _FRACTION_DIGITS or not below.strip("0."):
        return None
    return (-1 if negative else 1) * Fraction(above) / Fraction(below)


def _over(sign: int, numerator: str, denominator: str) -> Number | None:
    ratio = _ratio(numerator, denominator)
    return None if ratio is None else _exact(sign * ratio)


def _vulgar(char: str) -> Fraction:
    above, below = unicodedata.normalize("NFKC", char).split("⁄")
    return Fraction(int(above), int(below))


def _mixed(sign: int, whole: str, part: Fraction | None) -> Number | None:
    plain = _plain(whole)
    if part is None or plain is None or "." in plain or len(plain) > _FRACTION_DIGITS:
        return None
    return _exact(sign * (int(plain) + part))


def number_of(value: Any) -> Number | None:
    """The exact value of a Python number.

    A `float` means the decimal that it is printed as: 0.1 is one tenth.

    Args:
        value (`int`, `float`, `Decimal`, `Fraction`): or numpy's.

    Returns:
        `Number` or `None`: `None` where it is infinite, not a number, longer than numbers in texts may be, or a `bool`.

    Example:

    >>> number_of(12.50) == number_of(Fraction(25, 2)), number_of(float("nan"))
    (True, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        whole = int(value)
        return _canonical(-1 if whole < 0 else 1, str(abs(whole)), 0) if abs(whole) < 10**MOST_DIGITS else None
    if isinstance(value, Rational):
        fraction = Fraction(value)
        is_short = max(abs(fraction.numerator), fraction.denominator) < 10**_FRACTION_DIGITS
        return _exact(fraction) if is_short else None
    if isinstance(value, Real):
        value = Decimal(repr(float(value)))
    if not isinstance(value, Decimal) or not value.is_finite():
        return None
    negative, digits, exponent = value.as_tuple()
    return _canonical(-1 if negative else 1, "".join(map(str, digits)), int(exponent))


def last_digit(text: str) -> int:
    """The place of the last digit (or vulgar fraction), -1 if there is none.

    Digits that are not ASCII are looked for in the last 8,000 characters only, because Python has no quick way.
    """
    at = max(text.rfind(digit) for digit in "0123456789")
    if text.isascii():
        return at
    tail = text[max(at + 1, len(text) - 2 * MOST_DIGITS) :]
    found = _ONE_DIGIT.search(tail[::-1])
    return at if found is None else len(text) - 1 - found.start()
