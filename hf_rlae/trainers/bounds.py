"""Bounds of the numbers in configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_rlae.errors import ConfigError


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field of a configuration accepts. NaN and infinite values are never accepted.

    Args:
        least (`float`, defaults to 0): the smallest number.
        most (`float`, defaults to infinity): the largest number.
        is_open (`bool`, defaults to `False`): whether `least` itself is excluded.
        is_whole (`bool`, defaults to `False`): whether only `int` is accepted.
        is_optional (`bool`, defaults to `False`): whether `None` is accepted.
        note (`str`, *optional*): the end of the error message.

    Example:

    >>> Bounds(1, is_whole=True).holds(2), Bounds(1, is_whole=True).holds(2.5)
    (True, False)
    """

    least: float = 0
    most: float = math.inf
    is_open: bool = False
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
        return self.least <= value <= self.most and not (self.is_open and value == self.least)

    def __str__(self) -> str:
        parts = [f"a {'whole' if self.is_whole else 'finite'} number"]
        if self.least != -math.inf:
            parts.append(f"{'above' if self.is_open else 'of at least'} {self.least}")
        if self.most != math.inf:
            parts.append(f"and at most {self.most}")
        return " ".join(parts) + ", or None" * self.is_optional + f" ({self.note})" * bool(self.note)


def check_bounds(args: Any, bounds: Mapping[str, Bounds]) -> None:
    """Raises for the first field that is out of its bounds.

    Args:
        args: the configuration.
        bounds (`Mapping[str, Bounds]`): by the name of the field.

    Raises:
        ConfigError: names the field and its bounds.

    Example:

    >>> from types import SimpleNamespace
    >>> check_bounds(SimpleNamespace(gamma=1.5), {"gamma": Bounds(0, 1)})
    Traceback (most recent call last):
    hf_rlae.errors.ConfigError: gamma=1.5: give a finite number of at least 0 and at most 1
    """
    for name, allowed in bounds.items():
        value = getattr(args, name)
        if not allowed.holds(value):
            raise ConfigError(f"{name}={value!r}: give {allowed}")


def check_list(name: str, values: Any, allowed: Bounds, length: int | None = None) -> None:
    """Raises for a field that is neither `None` nor a list of numbers within bounds.

    Args:
        name (`str`): of the field.
        values (`list` or `None`): its value.
        allowed (`Bounds`): of each number.
        length (`int`, *optional*): of the list.

    Raises:
        ConfigError: names the field, its length and its bounds.

    Example:

    >>> check_list("rates", [0.1], Bounds(), 2)
    Traceback (most recent call last):
    hf_rlae.errors.ConfigError: rates=[0.1]: give a list of 2 numbers, each a finite number of at least 0
    """
    is_list = isinstance(values, list | tuple) and length in (None, len(values))
    if values is not None and not (is_list and all(map(allowed.holds, values))):
        count = "numbers" if length is None else f"{length} numbers"
        raise ConfigError(f"{name}={values!r}: give a list of {count}, each {allowed}")
