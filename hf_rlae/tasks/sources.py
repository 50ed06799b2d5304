"""Finds one split of a source: a file, a folder of files named after splits, the Hub, or a task's own examples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_rlae.errors import SplitError, TaskError, nearest
from hf_rlae.tasks.definition import BUILT_IN, Task
from hf_rlae.tasks.files import READERS, read_file
from hf_rlae.tasks.hub import read_hub

_SYNONYMS = {
    "training": "train",
    "testing": "test",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
}
_SHARD = re.compile(r"[-_]\d+-of-\d+\Z")


@dataclass(frozen=True)
class Table:
    """The rows of a split, unread.

    Args:
        label (`str`): the file or the Hub id, for messages.
        rows (`Sequence[Mapping]`): a list, or a `datasets.Dataset`.
        columns (`tuple[str, ...]`): of all rows together.
        places (`Sequence[str]`, *optional*): file and row of each; by index by default.
        holds_all (`bool`): whether the rows may belong to several splits, as nothing says which.
    """

    label: str
    rows: Any
    columns: tuple[str, ...]
    places: Sequence[str] | None = None
    holds_all: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def narrowed(self, columns: Sequence[str]) -> Table:
        """The same rows without the columns that nobody reads, where that saves work."""
        if not hasattr(self.rows, "select_columns"):
            return self
        return replace(self, rows=self.rows.select_columns(list(columns)), columns=tuple(columns))

    def place(self, index: int) -> str:
        """File and row, counted from 1."""
        return self.places[index] if self.places is not None else f"{self.label}, row {index + 1}"

    def take(self, indices: Sequence[int] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Rows with their places, all or those asked for."""
        if indices is None:
            indices = range(len(self))
            chosen = self.rows
        elif hasattr(self.rows, "select"):
            chosen = self.rows.select(indices)
        else:
            chosen = (self.rows[index] for index in indices)
        for index, values in zip(indices, chosen, strict=True):
            yield self.place(index), values


@dataclass(frozen=True)
class Source:
    """Where the splits of a task are to be found.

    Args:
        task (`Task`): whose.
        where (`str` or `Path`, *optional*): a file, a folder, a Hub id, or `"built_in"`; the task's own by default.
        config (`str`, *optional*), revision (`str`, *optional*): on the Hub, in the place of the task's own.
    """

    task: Task
    where: str | Path | None = None
    config: str | None = None
    revision: str | None = None

    def find(self, split: str) -> Table:
        """The rows of one split.

        Raises:
            TaskError: there is no such source, or no such split in it; the message names those that there are.
        """
        where = self.where if self.where is not None else self.task.default_source or self.task.hub_id
        if where is None:
            raise TaskError(
                f"the task {self.task.name!r} has no source of its own: pass source= with a file, a folder or a Hub id"
            )
        if where == BUILT_IN:
            self._check_known(split, BUILT_IN)
            label = f"the examples of {self.task.name}"
            return _table(label, [(f"row {n}", row) for n, row in enumerate(self.task.examples, 1)], holds_all=True)
        path = Path(where).expanduser()
        if path.is_dir() and str(where):
            return self._in_folder(path, split)
        if path.is_file():
            return self._in_file(path, split)
        if not _is_hub_id(str(where)):
            raise TaskError(f"source={str(where)!r}: there is no such file or folder, and it is no Hub id")
        is_own = str(where) == self.task.hub_id
        config = self.config or (self.task.hub_config if is_own else None)
        revision = self.revision or (self.task.revision if is_own else None)
        rows = read_hub(str(where), config, split, revision, self.task.is_gated, is_guess=not is_own)
        return Table(f"{where} ({config})" if config else str(where), rows, tuple(rows.column_names))

    def _in_file(self, path: Path, split: str) -> Table:
        if path.suffix.lower() not in self._endings():
            raise TaskError(f"{path}: a file of this task ends with {', '.join(self._endings())}")
        named = self._split_named(path.stem)
        if named is None and split != path.stem:
            self._check_known(split, str(path))
        elif split not in (named, path.stem):
            raise SplitError(
                f"{path} is named after the split {named!r} and there is no other in it, but {split!r} was asked for"
            )
        return _table(str(path), read_file(path), holds_all=named is None)

    def _in_folder(self, folder: Path, split: str) -> Table:
        config = self.config or self.task.hub_config
        for place in (folder, folder / (config or "."), folder / "data"):
            files = self._files(place)
            if files:
                break
        else:
            names = ", ".join(f"{each}{ending}" for each in self.task.splits[:2] for ending in self._endings()[:2])
            raise TaskError(f"the folder {folder} has no files for this task; expected such as {names}")
        by_split: dict[str, list[Path]] = {}
        for path in files:
            by_split.setdefault(self._split_named(path.stem) or path.stem, []).append(path)
        whole = config if config in by_split else next(iter(by_split)) if len(by_split) == 1 else None
        if split not in by_split and whole is not None and self._split_named(whole) is None:
            return self._in_file(by_split[whole][0], split)
        if split not in by_split:
            raise SplitError(f"the folder {place} has no split {split!r}: {nearest(split, by_split)}")
        found = [path for path in by_split[split] if path.stem == split] or by_split[split]
        if len(found) > 1 and not all(_SHARD.search(path.stem) for path in found):
            names = ", ".join(path.name for path in found)
            raise TaskError(f"the folder {place} has several files for the split {split!r}: {names}; pass one of them")
        rows = [(path, row) for path in found for row in read_file(path)]
        return Table(
            str(found[0] if len(found) == 1 else place),
            [values for _, (_, values) in rows],
            _union(values for _, (_, values) in rows),
            [f"{path}, {where}" for path, (where, _) in rows],
        )

    def _endings(self) -> list[str]:
        return [ending for ending in READERS if ending != ".txt" or self.task.reads_lines]

    def _files(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            return []
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in self._endings() and not path.name.startswith(".") and path.is_file()
        )

    def _check_known(self, split: str, label: str) -> None:
        if split not in self.task.splits:
            raise SplitError(
                f"{label}: the task {self.task.name!r} has no split {split!r}: {nearest(str(split), self.task.splits)}"
            )

    def _split_named(self, stem: str) -> str | None:
        """The split that a file is named after: `test`, `my_test_file`, `test-00000-of-00002`, `dev`."""
        left = _SHARD.sub("", stem.lower())
        found = set()
        for name in sorted({*self.task.splits, *_SYNONYMS}, key=len, reverse=True):
            shorter = re.sub(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", " ", left)
            if shorter != left:
                left = shorter
                found.add(name if name in self.task.splits else _SYNONYMS[name])
        return found.pop() if len(found) == 1 and found <= set(self.task.splits) else None


def _table(label: str, rows: Sequence[tuple[str, Mapping[str, Any]]], holds_all: bool) -> Table:
    values = [row for _, row in rows]
    return Table(label, values, _union(values), [f"{label}, {where}" for where, _ in rows], holds_all)


def _union(rows: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for row in rows for column in row))


def _is_hub_id(where: str) -> bool:
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", where) is not None and Path(where).suffix not in READERS
