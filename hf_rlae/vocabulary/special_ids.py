"""Token ids as configs store them: one id, several ids, or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def token_ids(value: int | Iterable[int] | None) -> list[int]:
    """The ids of an `eos_token_id`, which transformers allows to be one id, a list of ids, or `None`.

    Args:
        value (`int` or iterable of `int`, *optional*): one id or several.

    Returns:
        `list[int]`: all ids, in the same order; empty for `None`.

    Example:

    >>> token_ids(2), token_ids([2, 3]), token_ids(None)
    ([2], [2, 3], [])
    """
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def are_token_ids(value: Any, vocab_size: int | None = None) -> bool:
    """Whether a value is what a config may store as ids: `None`, an `int`, or a list of `int`.

    Args:
        value: of any type.
        vocab_size (`int`, *optional*): the number of ids, if ids must also exist.

    Example:

    >>> are_token_ids([2, 3]), are_token_ids("</s>"), are_token_ids(7, vocab_size=5)
    (True, False, False)
    """
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return all(
        isinstance(i, int) and not isinstance(i, bool) and (vocab_size is None or 0 <= i < vocab_size) for i in ids
    )
