"""Token ids as configs store them: one id, several ids, or none."""

from __future__ import annotations

from collections.abc import Iterable


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
