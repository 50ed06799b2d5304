"""Answers that are numbers."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from hf_rlae.tasks.task_row import TaskRow

MESSAGE = "{question}\n\nThink step by step. Write the answer, as a number, on a last line that begins with ####."

MARK = "####"

_NUMBER = re.compile(r"\$?([-+]?)\$?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?%?\.?", re.ASCII)


def plain_number(text: str) -> str | None:
    """A number without thousands separators, currency, percent sign or plus; `None` if the text is not a number.

    Example:

    >>> plain_number("$1,080"), plain_number("-3.50"), plain_number("12 apples")
    ('1080', '-3.50', None)
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None or not (found[2] or found[3]):
        return None
    sign = "-" if found[1] == "-" else ""
    return sign + (found[2] or "0").replace(",", "") + (found[3] or "")


def read_number(row: TaskRow, name: str) -> str:
    """The number in a field, which holds a number, a text that is one, or a text that ends with `#### number`.

    Returns:
        `str`: as in `plain_number`.

    Raises:
        TaskError: there is none.
    """
    value = row.value(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else f"{Decimal(repr(value)):f}"
    found = plain_number(row.text(name).rpartition(MARK)[2]) if isinstance(value, str) else None
    if found is None:
        raise row.error(name, f"{row.quote(value)} is not a number and does not end with '{MARK} ' and a number")
    return found
