"""One row of a source, read through checks that name the file, the row and the column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_rlae.errors import TaskError

Column = str | tuple[str, ...]
"""A column, or several columns whose values are taken together as a list."""


@dataclass(frozen=True)
class Binding:
    """Which column stands for which field in one source, and what all rows of a load share.

    Args:
        columns (`Mapping[str, Column | None]`): by field; `None` for an optional field that the source lacks.
        optional (`frozenset[str]`): fields that a row may lack.
        options (`Mapping[str, Any]`): the task's options.
        seed (`int`): for tasks that shuffle within a row.
        is_quoted (`bool`): whether messages may show values; `False` for gated data.
        notes (`Counter[str]`): what rows had to say, and how many of them.
    """

    columns: Mapping[str, Column | None]
    optional: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    is_quoted: bool = True
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Row:
    """A row as a task reads it: by field, not by column.

    Args:
        values (`Mapping[str, Any]`): the row as the source has it.
        place (`str`): file and row, for messages.
        binding (`Binding`): which column stands for which field.

    Raises:
        TaskError: by every reader, if the value is not what it should be.

    Example:

    >>> row = Row({"q": "Two and two?", "n": ""}, "sums.jsonl, line 1", Binding({"question": "q", "answer": "n"}))
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
        """What stands there, unchecked; a list where several columns stand for the field.

        `None` where an optional field is missing; a missing column is an error for the others.
        """
        column = self.binding.columns.get(name)
        if column is None:
            return None
        for each in (column,) if isinstance(column, str) else column:
            if each not in self.values:
                if name in self.binding.optional:
                    return None
                raise TaskError(f"{self.place} lacks the column {each!r}, which other rows have")
        return self.values[column] if isinstance(column, str) else [self.values[each] for each in column]

    def text(self, name: str) -> str:
        """A text that is not empty, without space at its ends."""
        return self.checked_text(name, self.value(name))

    def optional_text(self, name: str) -> str:
        """A text, `""` where the column, or a value in it, is missing."""
        value = self.value(name)
        return "" if value is None or value == "" else self.checked_text(name, value)

    def texts(self, name: str) -> list[str]:
        """A list, which is not empty, of texts that are not empty."""
        texts = [self.checked_text(name, each) for each in self.sequence(name)]
        if not texts:
            raise self.error(name, "the list is empty")
        return texts

    def sequence(self, name: str) -> list[Any]:
        """A list, which a file without types (CSV) may hold as JSON."""
        return self.checked_sequence(name, self.decoded(name))

    def decoded(self, name: str) -> Any:
        """The value, which a file without types (CSV) may hold as JSON; text that is no JSON stays as it is."""
        value = self.value(name)
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value

    def checked_sequence(self, name: str, value: Any) -> list[Any]:
        """The same for a value that was read before."""
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self.error(name, f"{self.quote(value)} is not a list")
        return list(value)

    def checked_text(self, name: str, value: Any) -> str:
        """The same for a value that was read before."""
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
        column = self.binding.columns.get(name)
        if column is None or isinstance(column, str):
            where = f"column {column or name!r}"
        else:
            where = "columns " + ", ".join(repr(each) for each in column)
        return TaskError(f"{self.place}, {where}: {problem}")

    def quote(self, value: Any) -> str:
        """A value for messages: shortened, or of gated data its type alone."""
        if value is None:
            return "None"
        if not self.binding.is_quoted:
            return f"a value of type {type(value).__name__}"
        shown = repr(value)
        return shown if len(shown) <= 40 else shown[:37] + "..."

    def note(self, remark: str) -> None:
        """Remembers that this row is odd, though usable; one warning a load tells how many are."""
        self.binding.notes[remark] += 1
