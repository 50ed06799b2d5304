"""One row of a source, read with checks whose errors name the file, the row and the column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_rlae.errors import TaskError

Column = str | tuple[str, ...]
"""A column, or several columns whose values form a list."""

_MOST_QUOTED = 40


def names_of(column: Column) -> tuple[str, ...]:
    """The names of one or several columns.

    Example:

    >>> names_of("A"), names_of(("A", "B"))
    (('A',), ('A', 'B'))
    """
    return (column,) if isinstance(column, str) else column


@dataclass(frozen=True)
class Binding:
    """Which column stands for which field in one source, and what all rows of a load share.

    Args:
        columns (`Mapping[str, Column | None]`): by field; `None` for an optional field that the source lacks.
        optional (`frozenset[str]`): fields that a row may lack.
        options (`Mapping[str, Any]`): the task's options.
        seed (`int`): for tasks that shuffle within a row.
        is_quoted (`bool`): whether messages may show values; `False` for gated data.
        notes (`Counter[str]`): remarks about rows, and the number of rows of each.
    """

    columns: Mapping[str, Column | None]
    optional: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    is_quoted: bool = True
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class TaskRow:
    """A row as a task reads it: by field, not by column.

    Args:
        values (`Mapping[str, Any]`): the row by column.
        place (`str`): file and row, for messages.
        binding (`Binding`): which column stands for which field.

    Raises:
        TaskError: in every method that reads a value, if the value is not of the kind that the method names.

    Example:

    >>> row = TaskRow({"q": "Two and two?", "n": ""}, "sums.jsonl, line 1", Binding({"question": "q", "answer": "n"}))
    >>> row.text("question")
    'Two and two?'
    >>> row.text("answer")
    Traceback (most recent call last):
    ...
    hf_rlae.errors.TaskError: sums.jsonl, line 1, column 'n': the text is empty
    """

    values: Mapping[str, Any]
    place: str
    binding: Binding

    @property
    def options(self) -> Mapping[str, Any]:
        """The task's options."""
        return self.binding.options

    @property
    def seed(self) -> int:
        """For tasks that shuffle within a row."""
        return self.binding.seed

    def value(self, name: str) -> Any:
        """The value of a field, unchecked; a list if several columns stand for the field.

        `None` where an optional field is missing. A missing column of any other field is an error.
        """
        column = self.binding.columns.get(name)
        if column is None:
            return None
        missing = [each for each in names_of(column) if each not in self.values]
        if missing and name in self.binding.optional:
            return None
        if missing:
            raise TaskError(f"{self.place} lacks the column {missing[0]!r}, which other rows have")
        return self.values[column] if isinstance(column, str) else [self.values[each] for each in column]

    def text(self, name: str) -> str:
        """A non-empty text, without whitespace at its ends."""
        return self.checked_text(name, self.value(name))

    def optional_text(self, name: str) -> str:
        """A text; `""` where the column or its value is missing."""
        value = self.value(name)
        return "" if value is None or value == "" else self.checked_text(name, value)

    def texts(self, name: str) -> list[str]:
        """A non-empty list of non-empty texts."""
        texts = [self.checked_text(name, each) for each in self.sequence(name)]
        if not texts:
            raise self.error(name, "the list is empty")
        return texts

    def sequence(self, name: str) -> list[Any]:
        """A list; in a file without types (CSV), a list as JSON."""
        return self.checked_sequence(name, self.decoded(name))

    def decoded(self, name: str) -> Any:
        """The value; if it is a string with a JSON list or object (as in CSV), that list or object."""
        value = self.value(name)
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value

    def checked_sequence(self, name: str, value: Any) -> list[Any]:
        """Checks that a value read before is a list."""
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self.error(name, f"{self.quote(value)} is not a list")
        return list(value)

    def checked_text(self, name: str, value: Any) -> str:
        """Checks that a value read before is a non-empty text."""
        if not isinstance(value, str):
            raise self.error(name, f"{self.quote(value)} is not a text")
        if not value.strip():
            raise self.error(name, "the text is empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(name, "the text holds half a character pair (a lone surrogate)") from None
        return value.strip()

    def error(self, name: str, problem: str) -> TaskError:
        """The error to raise about one field of this row."""
        names = names_of(self.binding.columns.get(name) or name)
        where = ("columns " if len(names) > 1 else "column ") + ", ".join(map(repr, names))
        return TaskError(f"{self.place}, {where}: {problem}")

    def quote(self, value: Any) -> str:
        """A value for messages: shortened, or for gated data only its type."""
        if value is None or self.binding.is_quoted:
            shown = repr(value)
            return shown if len(shown) <= _MOST_QUOTED else shown[: _MOST_QUOTED - 3] + "..."
        return f"a value of type {type(value).__name__}"

    def note(self, remark: str) -> None:
        """Counts this row as unusual but usable; one warning per load and remark gives the count."""
        self.binding.notes[remark] += 1
