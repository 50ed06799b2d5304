"""The private folders of workers: counted, and emptied for the next worker."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def holds_more_than(folder: Path, most: int) -> bool:
    """Whether there are more files and folders below a folder, or too deep ones. It stops counting there."""
    found = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found += 1
                    if found > most:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
        except OSError as error:  # it is gone, or its owner closed it: the worker may do both
            if error.errno == errno.ENAMETOOLONG:  # so deep that nobody can count it
                return True
    return False


def empty(folder: Path) -> None:
    """Removes everything below a folder, however deep, whatever it allows. No worker may use the folder now."""
    moved = 0
    while folders := [entry for entry in _entries(folder) if _is_removed_or_folder(entry)]:
        for entry in folders:
            os.chmod(entry, 0o700)
            for inner in _entries(entry):
                if _is_removed_or_folder(inner):  # deeper paths would grow too long: what lies below moves up
                    os.rename(inner, folder / f"moved-{moved}")
                    moved += 1
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(entry)


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries]


def _is_removed_or_folder(path: Path) -> bool:
    """Removes a file; says whether it is a folder, which is left."""
    if path.is_dir() and not path.is_symlink():
        return True
    os.unlink(path)
    return False
