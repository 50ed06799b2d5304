"""Results of questions on disk: one line of JSON per question, appended as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_rlae.errors import ConfigError
from hf_rlae.files import explained_if_full
from hf_rlae.members.fingerprint import digest_of

Record = dict[str, Any]


class RecordStore:
    """The results of one method on one task, in one setup.

    A file begins with a line that describes the setup; its name holds a digest of it, so that another setup has another
    file. Every further line is one question. A process that was killed while it wrote leaves a last line that is not
    whole; it is ignored, and cut off before more is appended.

    Args:
        folder (`Path`, *optional*): created if it does not exist; `None` keeps nothing on disk.
        name (`str`): of the task and the method, for people.
        setup (`Mapping`): all that results depend on, as JSON has it.
        rank (`int`, defaults to 0): of this process. Every process appends to a file of its own and reads all of them.

    Raises:
        ConfigError: the folder cannot be created, or is a file.
    """

    def __init__(self, folder: Path | None, name: str, setup: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = folder
        self.setup = dict(setup)
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:80]
        self.stem = f"{safe}-{digest_of(self.setup)}"
        self.path = None if folder is None else folder / f"{self.stem}.{rank}.jsonl"
        self._has_begun = False
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"output_dir={str(folder)!r} is no folder that can be created: {error}") from error

    def read(self) -> dict[str, Record]:
        """The results so far, by the key of the question."""
        found: dict[str, Record] = {}
        for path in sorted(self.folder.glob(f"{self.stem}.*.jsonl")) if self.folder is not None else ():
            for line in path.read_bytes().split(b"\n")[1:-1]:  # the last entry is empty, or a line that is not whole
                record = json.loads(line)
                found[record["key"]] = record
        return found

    def append(self, records: Iterable[Record]) -> None:
        """Adds results; they are on the disk when this returns."""
        if self.path is None:
            return
        lines = b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records)
        with explained_if_full(self.path.parent, self.path.name, lambda: len(lines)), open(self.path, "ab") as file:
            if not self._has_begun:
                whole = self.path.read_bytes().rfind(b"\n") + 1
                file.truncate(whole)
                if whole == 0:
                    lines = json.dumps({"setup": self.setup}, allow_nan=False).encode() + b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._has_begun = True
