"""Reads the examples of a split, and the shots that stand before them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from hf_rlae.errors import ConfigError, SplitError, TaskError, present
from hf_rlae.tasks.definition import BUILT_IN, Example, Task
from hf_rlae.tasks.few_shot import ShotPool, shuffled
from hf_rlae.tasks.sources import Source, Table
from hf_rlae.tasks.task_row import Binding, Column, TaskRow, names_of

logger = logging.getLogger(__name__)

Placed = tuple[str, Example]
"""The place of an example, for messages, and the example."""


@dataclass(frozen=True)
class Reader:
    """What the splits of one load have in common.

    Args:
        task (`Task`): whose rows are read.
        source (`Source`): where they are.
        columns (`Mapping[str, str | Sequence[str]]`): the user's column or columns, by field.
        options (`Mapping[str, Any]`): all options of the task.
        seed (`int`): of every draw.
        notes (`Counter[str]`): see [`Binding`].
    """

    task: Task
    source: Source
    columns: Mapping[str, str | Sequence[str]]
    options: Mapping[str, Any]
    seed: int
    notes: Counter[str] = field(default_factory=Counter)

    def read(self, split: str, limit: int | None) -> list[Placed]:
        """All examples of a split in order, or the first `limit` of a shuffle.

        Raises:
            TaskError: the split, a column or a row cannot be used.
        """
        if self.task.generate is not None:
            return list(self._generated(split, limit))
        table = self.source.find(split)
        order = None if limit is None else shuffled(len(table.rows), f"rows of {self.task.name}", self.seed)
        found = list(islice(self._examples(table, split, order), limit))
        for remark, count in self.notes.items():
            logger.warning("%s: %d of %d rows %s", table.label, count, len(found), remark)
        if not found:
            raise TaskError(f"{table.label}: none of its {len(table.rows)} rows gives a question of split {split!r}")
        return found

    def shot_pool(self, few_shot_split: str | None, num_shots: int) -> ShotPool:
        """Shots for the questions of any split.

        Args:
            few_shot_split (`str`, *optional*): of the shots, or `"built_in"`; by default the task's own split, or if
                the source lacks it, the examples that come with the task.
            num_shots (`int`): shots per question.

        Raises:
            TaskError: the split, a column or a row cannot be used.
        """
        split = few_shot_split or self.task.few_shot_split
        if self.task.generate is not None:
            made = self._generated(split, num_shots + 1)
            return ShotPool(num_shots, f"the split {split!r}").fill(example for _, example in made)
        table = self._shot_table(split, is_chosen=few_shot_split is not None)
        if table is None:
            # the task's own examples are few, so neither their split nor their group matters
            own = replace(self, source=Source(self.task, BUILT_IN), columns={})
            table = replace(own.source.find(self.task.splits[0]), holds_all=False)
            return ShotPool(num_shots, table.label).fill(own._shuffled(table, BUILT_IN))
        return ShotPool(num_shots, table.label, self.task.few_shot_group).fill(self._shuffled(table, split))

    def _shot_table(self, split: str, is_chosen: bool) -> Table | None:
        """The rows to draw shots from; `None` for the task's own examples.

        Those are taken where the user named no split (`is_chosen=False`) and the source lacks the task's own. A file
        that may hold any split counts as lacking it, unless some row says that it belongs to it.
        """
        split_of = self.task.split_of
        if split == BUILT_IN or (self.source.where == BUILT_IN and split_of is None):
            return None
        try:
            table = self.source.find(split)
        except SplitError:
            if is_chosen:
                raise
        else:
            if is_chosen or not table.holds_all or self._holds(table, split):
                return table
        logger.info("%s has no split %r: the shots are the task's own examples", self.task.name, split)
        return None

    def _holds(self, table: Table, split: str) -> bool:
        """Whether some row of a table says that it belongs to a split."""
        split_of = self.task.split_of
        return split_of is not None and any(split_of(row) == split for row in self._rows(table))

    def _shuffled(self, table: Table, split: str) -> Iterator[Example]:
        order = shuffled(len(table.rows), f"shots of {self.task.name}", self.seed)
        return (example for _, example in self._examples(table, split, order))

    def _rows(self, table: Table, order: Sequence[int] | None = None) -> Iterator[TaskRow]:
        """The rows of a table by the fields of the task.

        Raises:
            TaskError: the table is empty, or a field has no column.
        """
        if not len(table.rows):
            raise TaskError(f"{table.label} is empty; give a source with at least one row")
        task = self.task
        bound = {name: self._column(name, table) for name in task.fields}
        if hasattr(table.rows, "select_columns"):  # so that other columns, such as images, are not decoded
            read = {each for column in bound.values() if column is not None for each in names_of(column)}
            table = replace(table, rows=table.rows.select_columns(sorted(read)))
        optional = frozenset(task.optional_fields)
        binding = Binding(bound, optional, self.options, self.seed, not task.is_gated, self.notes)
        return (TaskRow(values, place, binding) for place, values in table.take(order))

    def _column(self, name: str, table: Table) -> Column | None:
        """The column that stands for a field; `None` for an optional field without one."""
        given = self.columns.get(name)
        accepted = self.task.fields[name] if given is None else (given if isinstance(given, str) else tuple(given),)
        there = table.columns
        found = next((column for column in accepted if set(names_of(column)) <= set(there)), None)
        if found is None and (given is not None or name not in self.task.optional_fields):
            wanted = " or ".join(" + ".join(map(repr, names_of(column))) for column in accepted)
            raise TaskError(
                f"{table.label} has no column for {name!r}: expected {wanted}, found "
                f"{', '.join(map(repr, there))}. If it has another name, pass columns={{{name!r}: NAME}}"
            )
        return found

    def _generated(self, split: str, limit: int | None) -> Iterator[Placed]:
        generate = present(self.task.generate, "the task's generate")
        self.task.check_split(split, "generated questions")
        for number, example in enumerate(generate(split, limit, self.seed, self.options), 1):
            yield f"{self.task.name} ({split}), row {number}", self._checked(example)

    def _examples(self, table: Table, split: str, order: Sequence[int] | None) -> Iterator[Placed]:
        task = self.task
        read = present(task.read, "the task's read")
        for row in self._rows(table, order):
            if table.holds_all and task.split_of is not None and task.split_of(row) not in (None, split):
                continue
            example = read(row)
            if example is not None:
                yield row.place, self._checked(example)

    def _checked(self, example: Example) -> Example:
        if set(example.columns) != set(self.task.extra_columns):
            given, declared = sorted(example.columns), sorted(self.task.extra_columns)
            raise ConfigError(
                f"the task {self.task.name!r} gives the columns {given}, but extra_columns are {declared}"
            )
        return example
