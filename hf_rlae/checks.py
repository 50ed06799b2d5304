"""Checks of options: numbers within bounds, and values out of a list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_rlae.errors import ConfigError, nearest


@dataclass(frozen=True)
class Bounds:
    """The numbers that an option accepts. NaN, infinite values and `bool` are never accepted.

    Args:
        least (`float`, *optional*), most (`float`, *optional*): the smallest and the largest number.
        above (`float`, *optional*), below (`float`, *optional*): limits that are themselves excluded.
        is_whole (`bool`, defaults to `False`): whether only `int` is accepted.
        is_optional (`bool`, defaults to `False`): whether `None` is accepted.
        note (`str`, *optional*): the end of the error message.

    Example:

    >>> Bounds(1, is_whole=True).holds(2), Bounds(1, is_whole=True).holds(2.5)
    (True, False)
    >>> str(Bounds(above=0, most=1))
    'a finite number above 0 and at most 1'
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    is_whole: bool = False
    is_optional: bool = False
    note: str = ""

    def holds(self, value: Any) -> bool:
        """Whether a value is within the bounds."""
        if value is None:
            return self.is_optional
        kind = int if self.is_whole else int | float
        if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        limits = " and ".join(f"{word} {limit}" for word, limit in words.items() if math.isfinite(limit))
        parts = ["a whole number" if self.is_whole else "a finite number", limits]
        return " ".join(filter(None, parts)) + ", or None" * self.is_optional + f" ({self.note})" * bool(self.note)


COUNT = Bounds(1, is_whole=True)
OPTIONAL_COUNT = Bounds(1, is_whole=True, is_optional=True)
NOT_NEGATIVE = Bounds(0)
POSITIVE = Bounds(above=0)
OPTIONAL_POSITIVE = Bounds(above=0, is_optional=True)
SHARE = Bounds(0, 1)


def check_number(name: str, value: Any, allowed: Bounds) -> None:
    """Raises for a value that is out of its bounds.

    Args:
        name (`str`): of the option, for the message.
        value: what was given.
        allowed (`Bounds`): what is expected.

    Raises:
        ConfigError: names the option, the value and the bounds.

    Example:

    >>> check_number("gamma", 1.5, SHARE)
    Traceback (most recent call last):
    ...
    hf_rlae.errors.ConfigError: gamma=1.5: give a finite number of at least 0 and at most 1
    """
    if not allowed.holds(value):
        raise ConfigError(f"{name}={value!r}: give {allowed}")


def check_fields(config: Any, bounds: Mapping[str, Bounds]) -> None:
    """Raises for the first field of a configuration that is out of its bounds; see `check_number`.

    Args:
        config: has the fields as attributes.
        bounds (`Mapping[str, Bounds]`): by the name of the field.
    """
    for name, allowed in bounds.items():
        check_number(name, getattr(config, name), allowed)


def check_list(name: str, values: Any, allowed: Bounds, length: int | None = None) -> None:
    """Raises for a value that is neither `None` nor a list of numbers within bounds.

    Args:
        name (`str`): of the option, for the message.
        values (`list` or `None`): what was given.
        allowed (`Bounds`): of each number.
        length (`int`, *optional*): of the list.

    Raises:
        ConfigError: names the option, the length and the bounds.

    Example:

    >>> check_list("rates", [0.1], NOT_NEGATIVE, 2)
    Traceback (most recent call last):
    ...
    hf_rlae.errors.ConfigError: rates=[0.1]: give a list of 2 numbers, each a finite number of at least 0
    """
    is_list = isinstance(values, list | tuple) and length in (None, len(values))
    if values is not None and not (is_list and all(map(allowed.holds, values))):
        count = "numbers" if length is None else f"{length} numbers"
        raise ConfigError(f"{name}={values!r}: give a list of {count}, each {allowed}")


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raises for a value that is not one of the known ones.

    Args:
        name (`str`): of the option, for the message.
        value: what was given.
        known (iterable of `str`): the values that are allowed.

    Raises:
        ConfigError: names the option, the nearest value and all values.

    Example:

    >>> check_choice("unit", "token", ("tokens", "characters"))
    Traceback (most recent call last):
    ...
    hf_rlae.errors.ConfigError: unit='token': did you mean 'tokens'? Known: characters, tokens.
    """
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{name}={value!r}: {nearest(str(value), known)}")
