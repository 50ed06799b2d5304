"""Reads local files: JSON, JSON lines, CSV, Parquet and lines of text.

`datasets.load_dataset` reads them too, but its errors do not name the line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_rlae.errors import TaskError

PlacedRow = tuple[str, Mapping[str, Any]]
"""The place of a row for messages (`"FILE, line 3"` or `"FILE, row 3"`, both counted from 1), and the row."""

_MAX_FIELD = 2**31 - 1


def read_file(path: Path) -> list[PlacedRow]:
    """All rows of one file.

    Args:
        path (`Path`): a file whose ending is one of `READERS`.

    Raises:
        TaskError: the file cannot be read in the format of its ending; the message names the line if there is one.
    """
    try:
        return list(READERS[path.suffix.lower()](path))
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error
    except UnicodeDecodeError:
        raise TaskError(f"{path} is not UTF-8; convert it first") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not empty, with their places."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {number}", line.strip()


def _read_text(path: Path) -> Iterator[PlacedRow]:
    """Each line as the column `text`."""
    for place, line in _lines(path):
        yield place, {"text": line}


def _read_json_lines(path: Path) -> Iterator[PlacedRow]:
    for place, line in _lines(path):
        yield place, _checked_row(_parsed(line, place), place)


def _read_json(path: Path) -> Iterator[PlacedRow]:
    """A list of objects, or JSON lines: many files of JSON lines end with `.json`."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _read_json_lines(path)
        return
    for number, row in enumerate(_parsed(text, str(path)), 1):
        place = f"{path}, row {number}"
        yield place, _checked_row(row, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"{place} is not JSON ({error}; counted from there); expected one object per line, or in a .json file a "
            "list of objects"
        ) from None


def _checked_row(row: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise TaskError(f"{place} is not an object with columns, but {type(row).__name__}")
    return row


def _read_csv(path: Path) -> Iterator[PlacedRow]:
    """A header, and rows of the same width; all values are strings."""
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if len(set(header)) != len(header):
                raise TaskError(f"{path}, line 1: a column occurs twice in the header")
            start = rows.line_num + 1
            for row in rows:
                place = f"{path}, line {start}"
                if row and len(row) != len(header):
                    raise TaskError(f"{place} has {len(row)} values, but the header has {len(header)} columns")
                if row:
                    yield place, dict(zip(header, row, strict=True))
                start = rows.line_num + 1
    except csv.Error as error:
        raise TaskError(f"{path} is not CSV: {error} (line {rows.line_num})") from None
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise TaskError(f"{path} is not Parquet ({type(error).__name__})") from None
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
"""The reader of each file format, by ending."""


def built_in_rows(name: str) -> tuple[Mapping[str, Any], ...]:
    """The rows that come with the package for a task.

    Args:
        name (`str`): of a file in the folder `examples`, in the schema of the task's default source.

    Example:

    >>> built_in_rows("piqa.jsonl")[0]["goal"]
    'Keep soup warm until lunch.'
    """
    return tuple(row for _, row in read_file(Path(__file__).with_name("examples") / name))
