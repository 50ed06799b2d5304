"""Typed errors. Each says what was given, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HfRlaeError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(HfRlaeError, ValueError):
    """An option has a value that cannot be used; the message names the field."""


class TokenizerError(HfRlaeError, ValueError):
    """A tokenizer cannot take part: it loses text, has no fast backend, or belongs to another model."""


class MemberError(HfRlaeError, ValueError):
    """A model cannot be a member: its architecture cannot be relayed, or its parameters are unusable."""


class InputError(HfRlaeError, ValueError):
    """Arguments of `forward` or `generate` that cannot be decoded from; the message names the argument."""


class PolicyError(HfRlaeError, ValueError):
    """A policy returned something that is not one weight vector per row."""


class TaskError(HfRlaeError, ValueError):
    """The data of a task cannot be used; the message names the file, the row and the column, and nothing is loaded."""


class SplitError(TaskError):
    """The source lacks a split; the message names those that it has."""


class NonFiniteError(HfRlaeError, ArithmeticError):
    """A value is NaN or infinite; the message names what it belongs to (a member, role, reward, parameter) and when."""


class CheckpointError(HfRlaeError, ValueError):
    """A folder cannot be resumed from, or a state cannot be saved; the message says what is missing or wrong."""


class RewardError(HfRlaeError, ValueError):
    """A reward was given something it cannot work with; the message names the reward and the column or row."""


class RewardUnavailableError(HfRlaeError, RuntimeError):
    """A reward exists, but something that it needs is not there; the message says what and how to get it."""


class ObjectiveError(HfRlaeError, ValueError):
    """Tensors that no loss or advantage can be made of; the message names the tensor."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A closing hint for messages about unknown names.

    Args:
        given (`str`): the name that was given.
        known (iterable of `str`): the names that exist.

    Returns:
        `str`: the sorted known names, with the nearest one first where one is near.

    Example:

    >>> nearest("liner", ["linear", "log"])
    "did you mean 'linear'? Known: linear, log."
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    start = f"did you mean {near[0]!r}? " if near else ""
    return f"{start}Known: {', '.join(names)}."
