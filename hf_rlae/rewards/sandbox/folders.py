"""The private folders of workers: counted, and emptied for the next worker."""

from __future__ import annotations

import errno
import os
import secrets
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
    """Removes everything below a folder, however deep, whatever it allows. No worker may use the folder now.

    Raises:
        OSError: something cannot be removed.
    """
    prefix = secrets.token_hex(16)  # that no worker could have guessed
    moved = 0
    while folders := _left(folder):
        for entry in folders:
            for inner in _left(entry):  # paths to what is deeper would grow too long: it moves up
                os.rename(inner, folder / f"{prefix}-{moved}")
                moved += 1
            os.rmdir(entry)


def _left(folder: Path) -> list[Path]:
    """The folders in a folder, open to their owner, after its files are removed."""
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
        else:
            os.unlink(entry.path)
    return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
