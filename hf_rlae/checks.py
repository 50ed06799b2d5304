"""Checks of options that several folders share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hf_rlae.errors import ConfigError, nearest


def check_int(name: str, value: Any, smallest: int | None = None) -> None:
    """Raises for a value that is not a whole number, or a too small one.

    Args:
        name (`str`): of the option, for the message.
        value: what was given. A `bool` is refused.
        smallest (`int`, *optional*): the smallest value that is allowed.

    Raises:
        ConfigError: names the option.

    Example:

    >>> check_int("limit", 0, smallest=1)
    Traceback (most recent call last):
    ...
    hf_rlae.errors.ConfigError: limit=0: expected an int of at least 1
    """
    if not isinstance(value, int) or isinstance(value, bool) or (smallest is not None and value < smallest):
        expected = "an int" if smallest is None else f"an int of at least {smallest}"
        raise ConfigError(f"{name}={value!r}: expected {expected}")


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
    if value not in known:
        raise ConfigError(f"{name}={value!r}: {nearest(str(value), known)}")
