"""Rows of local files: JSON, JSON lines, CSV, Parquet and lines of text, read here so that errors can name the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_rlae.errors import TaskError

NumberedRow = tuple[str, Mapping[str, Any]]
"""Where in the file a row stands (`"line 3"`, `"row 3"`; both count from 1), and the row."""

_MAX_FIELD = 2**31 - 1


def read_file(path: Path) -> list[NumberedRow]:
    """All rows of one file.

    Args:
        path (`Path`): a file whose ending is one of `READERS`.

    Raises:
        TaskError: the file cannot be read as what its ending says; the message names the line where there is one.
    """
    try:
        return list(READERS[path.suffix.lower()](path))
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error
    except UnicodeDecodeError:
        raise TaskError(f"{path} is not UTF-8; convert it first") from None


def read_json_lines(path: Path) -> Iterator[NumberedRow]:
    """One object a line; empty lines are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                where = f"line {number}"
                yield where, _checked_row(_parsed(text, f"{path}, {where}"), f"{path}, {where}")


def read_json(path: Path) -> Iterator[NumberedRow]:
    """A list of objects; or JSON lines, which are often named so."""
    text = path.read_bytes().decode("utf-8-sig").strip()
    if not text:
        return
    if not text.startswith("["):
        is_lines = "\n" in text and text.split("\n", 1)[0].rstrip().endswith("}")
        if is_lines or _is_row(text):
            yield from read_json_lines(path)
            return
        raise TaskError(f"{path}: expected a list of objects, or one object a line")
    for number, row in enumerate(_parsed(text, str(path)), 1):
        yield f"row {number}", _checked_row(row, f"{path}, row {number}")


def _is_row(text: str) -> bool:
    return text.startswith("{") and "\n" not in text


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"{where} is not JSON: {error.msg} (line {error.lineno}, column {error.colno} of it)") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is not JSON that can be read ({type(error).__name__})") from None


def _checked_row(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise TaskError(f"{where} is not an object with columns, but {type(row).__name__}")
    return row


def read_csv(path: Path) -> Iterator[NumberedRow]:
    """A header and rows as wide as it; all values are texts."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, None)
            if header is None:
                return
            if len(set(header)) != len(header):
                raise TaskError(f"{path}, line 1: a column occurs twice in the header")
            start = rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    raise TaskError(f"{path}, line {start} has {len(row)} values, and the header {len(header)} columns")
                if row:
                    yield f"line {start}", dict(zip(header, row, strict=True))
                start = rows.line_num + 1
    except csv.Error as error:
        raise TaskError(f"{path} is not CSV: {error} (line {rows.line_num})") from None
    finally:
        csv.field_size_limit(before)


def read_parquet(path: Path) -> Iterator[NumberedRow]:
    """Any Parquet file, such as those of the Hub."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise TaskError(f"{path} is not Parquet that can be read ({type(error).__name__})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", row


def read_lines(path: Path) -> Iterator[NumberedRow]:
    """Every line that is not empty, as the column `text`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield f"line {number}", {"text": text}


READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_lines,
}
"""How each kind of file is read, by its ending."""
