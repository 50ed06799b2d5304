"""Short names of members, for metrics, tables, pictures and model cards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

Names = Sequence[str] | Any
"""Names of members, or an ensemble with `members`."""


def short_names(names: Iterable[object]) -> list[str]:
    """The last part of each name, with the member's number where that is not unique.

    Args:
        names (iterable): of the members: Hub ids, folders or others.

    Example:

    >>> short_names(["owner/first", "/models/second/"]), short_names(["a/x", "b/x"])
    (['first', 'second'], ['x-0', 'x-1'])
    """
    short = [str(name).rstrip("/").split("/")[-1] for name in names]
    return [name if short.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(short)]


def names_of(source: Names) -> list[str]:
    """The names that are given, or the short names of an ensemble's members.

    Args:
        source (`Sequence[str]` or `EnsembleForCausalLM`): names, or an ensemble.

    Example:

    >>> names_of(("first", "second"))
    ['first', 'second']
    """
    members = getattr(source, "members", None)
    return list(source) if members is None else short_names(member.name for member in members)


def wrapped_name(name: str, width: int) -> str:
    """A name with line breaks after its punctuation; tables would break it inside a word.

    Args:
        name (`str`): of a member.
        width (`int`): the most characters in a line, if its words are not longer.

    Example:

    >>> wrapped_name("multiplication-pieces", 16)
    'multiplication-\\npieces'
    """
    lines = [""]
    for part in re.findall(r"[^-_./:]*[-_./:]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
