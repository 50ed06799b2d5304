"""Reads the examples of a split, and the shots that go before them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_rlae.errors import ConfigError, SplitError, TaskError, nearest
from hf_rlae.tasks.definition import BUILT_IN, Example, Task
from hf_rlae.tasks.few_shot import ShotPool, shuffled
from hf_rlae.tasks.row import Binding, Column, Row
from hf_rlae.tasks.sources import Source, Table

logger = logging.getLogger(__name__)

Placed = tuple[str, Example]
"""An example and where it stands, for messages."""


@dataclass(frozen=True)
class Reader:
    """What the splits of one load have in common.

    Args:
        task (`Task`): whose rows they are.
        source (`Source`): where they are.
        columns (`Mapping[str, str | Sequence[str]]`): the user's column, or columns, for a field.
        options (`Mapping[str, Any]`): the task's options, complete.
        seed (`int`): of every draw.
    """

    task: Task
    source: Source
    columns: Mapping[str, str | Sequence[str]]
    options: Mapping[str, Any]
    seed: int

    def read(self, split: str, limit: int | None) -> list[Placed]:
        """All examples of a split in order, or the first `limit` of a shuffle.

        Raises:
            TaskError: the split, a column or a row cannot be used.
        """
        if self.task.generate is not None:
            return list(self._generated(split, limit))
        table = self.source.find(split)
        table, binding = self._bound(table)
        order = None if limit is None else shuffled(len(table), f"rows of {self.task.name}", self.seed)
        found: list[Placed] = []
        for placed in self._examples(table, binding, split, order):
            found.append(placed)
            if len(found) == limit:
                break
        for remark, count in binding.notes.items():
            logger.warning("%s: %d of %d rows %s", table.label, count, len(found), remark)
        if not found:
            raise TaskError(f"{table.label}: none of its {len(table)} rows gives a question of the split {split!r}")
        return found

    def shot_pool(self, few_shot_split: str | None, num_shots: int) -> ShotPool:
        """Shots for the questions of any split.

        Args:
            few_shot_split (`str`, *optional*): of the shots, or `"built_in"`; by default the task's own, or if the
                source lacks that, the examples that come with the task.
            num_shots (`int`): for each question.

        Raises:
            TaskError: the split, a column or a row cannot be used.
        """
        chosen = few_shot_split or self.task.few_shot_split
        if self.task.generate is not None:
            pool = ShotPool(num_shots, f"the split {chosen!r}")
            for _, example in self._generated(chosen, num_shots + 1):
                pool.add(example)
            return pool
        is_own = chosen == BUILT_IN or (self.source.where == BUILT_IN and self.task.split_of is None)
        table = None if is_own else self._shot_table(chosen, is_chosen=few_shot_split is not None)
        if table is None:
            return self._own_shots(num_shots)
        pool = ShotPool(num_shots, table.label, self.task.few_shot_group)
        table, binding = self._bound(table)
        order = shuffled(len(table), f"shots of {self.task.name}", self.seed)
        for _, example in self._examples(table, binding, chosen, order):
            pool.add(example)
            if pool.is_full:
                break
        return pool

    def _shot_table(self, chosen: str, is_chosen: bool) -> Table | None:
        """The rows to draw shots from, or `None` if the user named no split and the source lacks the task's own."""
        try:
            table = self.source.find(chosen)
        except SplitError:
            if is_chosen:
                raise
        else:
            # one file that may stand for any split is not a training split beside the split asked for
            if is_chosen or not table.holds_all or self._holds(table, chosen):
                return table
        logger.info("%s has no split %r: the shots are the task's own examples", self.task.name, chosen)
        return None

    def _holds(self, table: Table, split: str) -> bool:
        """Whether some row of a table says that it belongs to a split."""
        split_of = self.task.split_of
        if split_of is None:
            return False
        table, binding = self._bound(table)
        return any(split_of(Row(values, place, binding)) == split for place, values in table.take())

    def _own_shots(self, num_shots: int) -> ShotPool:
        own = replace(self, source=Source(self.task, BUILT_IN), columns={})
        table, binding = own._bound(own.source.find(self.task.splits[0]))
        pool = ShotPool(num_shots, table.label)
        order = shuffled(len(table), f"shots of {self.task.name}", self.seed)
        for _, example in own._examples(replace(table, holds_all=False), binding, BUILT_IN, order):
            pool.add(example)
        return pool

    def _bound(self, table: Table) -> tuple[Table, Binding]:
        """The columns that are read of a table, and what they stand for."""
        binding = bind(self.task, table, self.columns, self.options, self.seed)
        read = [column for column in binding.columns.values() if column is not None]
        flat = [name for column in read for name in ([column] if isinstance(column, str) else column)]
        return table.narrowed(list(dict.fromkeys(flat))), binding

    def _generated(self, split: str, limit: int | None) -> Iterator[Placed]:
        if split not in self.task.splits:
            known = nearest(str(split), self.task.splits)
            raise SplitError(f"the task {self.task.name!r} has no split {split!r}: {known}")
        if self.task.generate is not None:
            made = self.task.generate(split, limit, self.seed, self.options)
            for number, example in enumerate(made, 1):
                yield f"{self.task.name} ({split}), row {number}", self._checked(example)

    def _examples(self, table: Table, binding: Binding, split: str, order: Sequence[int] | None) -> Iterator[Placed]:
        task = self.task
        for place, values in table.take(order):
            row = Row(values, place, binding)
            if table.holds_all and task.split_of is not None and task.split_of(row) not in (None, split):
                continue
            example = task.read(row) if task.read is not None else None
            if example is not None:
                yield place, self._checked(example)

    def _checked(self, example: Example) -> Example:
        if set(example.columns) != set(self.task.extra_columns):
            given, declared = sorted(example.columns), sorted(self.task.extra_columns)
            raise ConfigError(
                f"the task {self.task.name!r} gives the columns {given}, but extra_columns are {declared}"
            )
        return example


def bind(
    task: Task,
    table: Table,
    columns: Mapping[str, str | Sequence[str]],
    options: Mapping[str, Any],
    seed: int,
) -> Binding:
    """Which columns of a table stand for which fields of a task.

    Raises:
        TaskError: the table is empty, or a field has no column.
    """
    if not len(table):
        raise TaskError(f"{table.label} is empty: there is no row to take")
    bound: dict[str, Column | None] = {}
    for name, accepted in task.fields.items():
        if name in columns:
            given = columns[name]
            accepted = (given if isinstance(given, str) else tuple(given),)
        bound[name] = next((column for column in accepted if _is_there(column, table.columns)), None)
        if bound[name] is None and (name in columns or name not in task.optional_fields):
            wanted = " or ".join(repr(column) if isinstance(column, str) else _joined(column) for column in accepted)
            found = ", ".join(repr(column) for column in table.columns)
            raise TaskError(
                f"{table.label} has no column for {name!r}: expected {wanted}, found {found}. If it has another name, "
                f"pass columns={{{name!r}: NAME}}"
            )
    return Binding(bound, frozenset(task.optional_fields), options, seed, not task.is_gated)


def _is_there(column: Column, columns: Sequence[str]) -> bool:
    return {column} <= set(columns) if isinstance(column, str) else set(column) <= set(columns)


def _joined(columns: Sequence[str]) -> str:
    return " + ".join(repr(column) for column in columns)
