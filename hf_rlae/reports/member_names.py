"""Short names of members, for metrics, pictures and model cards."""

from __future__ import annotations

from collections.abc import Iterable


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
