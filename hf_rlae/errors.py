"""Typed errors. Each message says what was given, what was expected and how to fix it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")
_MAX_CHARACTERS = 400


class HfRlaeError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(HfRlaeError, ValueError):
    """An option has an invalid value; the message names the field."""


class TokenizerError(HfRlaeError, ValueError):
    """A tokenizer cannot be used: it loses text, has no fast backend, or belongs to another model."""


class MemberError(HfRlaeError, ValueError):
    """A model cannot be a member: its files are not whole, its parameters not finite, or it is of another kind."""


class MemberLostError(MemberError):
    """The worker of a remote member has ended or is late; the message names the member and says how to go on."""


class InputError(HfRlaeError, ValueError):
    """Invalid arguments of `forward` or `generate`; the message names the argument."""


class PolicyError(HfRlaeError, ValueError):
    """A policy cannot be loaded or used, or returned something that is not one weight vector per row."""


class TaskError(HfRlaeError, ValueError):
    """The data of a task cannot be used; the message names the file, the row and the column, and nothing is loaded."""


class SplitError(TaskError):
    """The source does not have the split; the message lists the splits that it has."""


class NonFiniteError(HfRlaeError, ArithmeticError):
    """A value is NaN or infinite; the message names its owner (a member, role, reward or parameter) and the step."""


class CheckpointError(HfRlaeError, ValueError):
    """Training cannot resume from a folder, or a state cannot be saved; the message says what is missing or wrong."""


class FolderInUseError(HfRlaeError, RuntimeError):
    """Another run trains in the same output folder; the message names its process and its host."""


class DiskFullError(HfRlaeError, OSError):
    """A file could not be written because the disk is full; the message gives the path, and needed and free bytes."""


class RewardError(HfRlaeError, ValueError):
    """A reward got invalid input or returned invalid output; the message names the reward and the column or row."""


class RewardUnavailableError(HfRlaeError, RuntimeError):
    """A reward exists, but something that it needs is not available; the message says what, and how to get it."""


class SandboxUnavailableError(RewardUnavailableError):
    """Code of a model cannot run apart from this machine, or workers fail too often; the message says what failed."""


class ObjectiveError(HfRlaeError, ValueError):
    """Tensors from which no loss or advantage can be computed; the message names the tensor."""


class InternalError(HfRlaeError, RuntimeError):
    """A defect of this package, not of its input; please report it with the message."""


def present(value: _T | None, what: str) -> _T:
    """A value that this package has set before.

    Args:
        value: what must not be `None`.
        what (`str`): its name, for the message.

    Raises:
        InternalError: the value is `None`.
    """
    if value is None:
        raise InternalError(f"{what} is missing where it must be known: a defect of hf_rlae, please report it")
    return value


def nearest(given: str, known: Iterable[str]) -> str:
    """The hint at the end of messages about unknown names.

    Args:
        given (`str`): the name that was given.
        known (iterable of `str`): the names that exist.

    Returns:
        `str`: the sorted known names, after a suggestion if a known name is close to the given one.

    Example:

    >>> nearest("liner", ["linear", "log"])
    "did you mean 'linear'? Known: linear, log."
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    start = f"did you mean {near[0]!r}? " if near else ""
    return f"{start}Known: {', '.join(names)}."


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def shortened(text: str) -> str:
    """A text of another package without line breaks, cut after 400 characters."""
    joined = one_line(text)
    return joined if len(joined) <= _MAX_CHARACTERS else f"{joined[:_MAX_CHARACTERS]} ..."


def with_type(error: BaseException, text: str) -> str:
    """A message after the type of its error; the type alone if there is no message."""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_sentence(error: BaseException) -> str:
    """What an error of another package says: its first line, with those that a colon announces, as a sentence.

    Example:

    >>> first_sentence(ValueError("Bad field 'size':\\n    ValueError: 3 is odd\\nSee the manual"))
    "Bad field 'size': ValueError: 3 is odd."
    >>> first_sentence(KeyError("added_tokens"))
    "KeyError: 'added_tokens'."
    """
    lines = [line.strip() for line in str(error).strip().splitlines()]
    announced = list(itertools.takewhile(lambda line: line.endswith(":"), lines))
    text = shortened(" ".join(lines[: len(announced) + 1]))
    if not isinstance(error, OSError | ValueError) or not text:  # the messages of other types are meant for programmers
        text = with_type(error, text)
    return text if text.endswith((".", "!", "?")) else f"{text}."
