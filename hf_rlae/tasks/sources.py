"""Finds one split of a source: a file, a folder of files named after splits, the Hub, or a task's own examples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_rlae.errors import SplitError, TaskError, nearest
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.tasks.definition import BUILT_IN, Task
from hf_rlae.tasks.files import READERS, PlacedRow, read_file
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
    """The rows of a split.

    Args:
        label (`str`): the file or the Hub id, for messages.
        rows (`Sequence[Mapping]`): a list, or a `datasets.Dataset`.
        places (`Sequence[str]`): file and row of each, for messages.
        holds_all (`bool`): whether the rows may belong to several splits, because the source does not say which.
    """

    label: str
    rows: Any
    places: Sequence[str]
    holds_all: bool = False

    @classmethod
    def of(cls, label: str, rows: Sequence[PlacedRow], holds_all: bool = False) -> Table:
        """A table of local rows."""
        return cls(label, [values for _, values in rows], [place for place, _ in rows], holds_all)

    @cached_property
    def columns(self) -> list[str]:
        """The columns of all rows together."""
        if hasattr(self.rows, "column_names"):
            return list(self.rows.column_names)
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def take(self, order: Sequence[int] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The rows with their places, in the given order or all in their own."""
        if order is None:
            return zip(self.places, self.rows, strict=True)
        return ((self.places[index], self.rows[index]) for index in order)


@dataclass(frozen=True)
class Source:
    """The place of a task's splits.

    Args:
        task (`Task`): whose splits.
        where (`str` or `Path`, *optional*): a file, a folder, a Hub id, or `"built_in"`; the task's own by default.
        config (`str`, *optional*), revision (`str`, *optional*): on the Hub; the task's own by default.
    """

    task: Task
    where: str | Path | None = None
    config: str | None = None
    revision: str | None = None

    def find(self, split: str) -> Table:
        """The rows of one split.

        Raises:
            TaskError: there is no such source, or it has no such split; the message names the splits that it has.
        """
        where = self.where if self.where is not None else self.task.default_source or self.task.hub_id
        if where is None:
            raise TaskError(
                f"the task {self.task.name!r} has no source of its own: pass source= with a file, a folder or a Hub id"
            )
        if where == BUILT_IN:
            self.task.check_split(split, BUILT_IN)
            label = f"the examples of {self.task.name}"
            rows = [(f"{label}, row {number}", row) for number, row in enumerate(self.task.examples, 1)]
            return Table.of(label, rows, holds_all=True)
        path = Path(where).expanduser()
        if path.is_dir() and str(where):
            return self._in_folder(path, split)
        if path.is_file():
            return self._in_file(path, split)
        return self._on_hub(str(where), split)

    def _on_hub(self, hub_id: str, split: str) -> Table:
        if not is_repo_id(hub_id) or Path(hub_id).suffix in READERS:
            raise TaskError(f"source={hub_id!r}: there is no such file or folder, and it is not a Hub id")
        is_own = hub_id == self.task.hub_id
        config = self.config or (self.task.hub_config if is_own else None)
        revision = self.revision or (self.task.revision if is_own else None)
        rows = read_hub(hub_id, config, split, revision, self.task.is_gated, is_guess=not is_own)
        label = f"{hub_id} ({config})" if config else hub_id
        return Table(label, rows, [f"{label}, row {number}" for number in range(1, len(rows) + 1)])

    def _in_file(self, path: Path, split: str) -> Table:
        if path.suffix.lower() not in self._endings:
            raise TaskError(f"{path}: a file of this task ends with {', '.join(self._endings)}")
        named = self._split_named(path.stem)
        if named is None and split != path.stem:
            self.task.check_split(split, str(path))
        elif split not in (named, path.stem):
            raise SplitError(
                f"{path} is named after the split {named!r} and holds no other split, but {split!r} was asked for"
            )
        return Table.of(str(path), read_file(path), holds_all=named is None)

    def _in_folder(self, folder: Path, split: str) -> Table:
        place, files = self._files_of(folder)
        found = [path for path in files if path.stem == split]
        found = found or [path for path in files if self._split_named(path.stem) == split]
        if not found:
            return self._in_file(self._whole_file(place, files, split), split)
        if len(found) > 1 and not all(_SHARD.search(path.stem) for path in found):
            names = ", ".join(path.name for path in found)
            raise TaskError(f"the folder {place} has several files for the split {split!r}: {names}; pass one of them")
        label = str(found[0] if len(found) == 1 else place)
        return Table.of(label, [row for path in found for row in read_file(path)])

    def _whole_file(self, place: Path, files: Sequence[Path], split: str) -> Path:
        """The file that may hold every split: the one named after the config, or the only one."""
        whole = [path for path in files if path.stem == self._config] or files
        if len(whole) == 1 and self._split_named(whole[0].stem) is None:
            return whole[0]
        splits = {self._split_named(path.stem) or path.stem for path in files}
        raise SplitError(f"the folder {place} has no split {split!r}: {nearest(split, splits)}")

    def _files_of(self, folder: Path) -> tuple[Path, list[Path]]:
        """The files in a folder, or in its folder of the config or `data`, as in a copy of a Hub repository."""
        for place in (folder, folder / (self._config or "."), folder / "data"):
            files = sorted(filter(self._is_readable, place.iterdir())) if place.is_dir() else []
            if files:
                return place, files
        names = ", ".join(f"{split}{ending}" for split in self.task.splits[:2] for ending in self._endings[:2])
        raise TaskError(f"the folder {folder} has no files for this task; expected files such as {names}")

    def _is_readable(self, path: Path) -> bool:
        return path.suffix.lower() in self._endings and not path.name.startswith(".") and path.is_file()

    @property
    def _config(self) -> str | None:
        return self.config or self.task.hub_config

    @property
    def _endings(self) -> list[str]:
        return [ending for ending in READERS if ending != ".txt" or self.task.reads_lines]

    def _split_named(self, stem: str) -> str | None:
        """The split that a file is named after: `test`, `my_test_file`, `test-00000-of-00002`, `dev`."""
        names = {name: split for name, split in _SYNONYMS.items() if split in self.task.splits}
        names |= {split: split for split in self.task.splits}
        longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        words = re.findall(rf"(?<![a-z0-9])(?:{longest_first})(?![a-z0-9])", _SHARD.sub("", stem.lower()))
        found = {names[word] for word in words}
        return found.pop() if len(found) == 1 else None
