"""Files that are written atomically, and disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_rlae.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and PyTorch raise errors of their own, with the number in the text or without any
_FULL_TEXTS = (
    *(f"os error {number}" for number in _FULL),
    *(os.strerror(number) for number in _FULL),
    "inline_container.cc",
    "iostream error",
)


def write_whole(path: str | Path, data: str | bytes) -> Path:
    """Writes a file atomically, by renaming a temporary file in the same folder.

    Args:
        path (`str` or `Path`): replaced if it exists. Devices and pipes (`/dev/stdout`) are written to directly.
        data (`str` or `bytes`): text is written in UTF-8; half a character pair (a lone surrogate) becomes `?`.

    Returns:
        `Path`: the path of the file.

    Raises:
        DiskFullError: the disk is full; the former file is unchanged.
        OSError: the folder is missing or not writable; the former file is unchanged.

    Example:

    >>> import tempfile
    >>> write_whole(Path(tempfile.mkdtemp()) / "notes.txt", "whole").read_text()
    'whole'
    """
    path = Path(path)
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    with explained_if_full(path.parent, path.name, lambda: len(raw)):
        if path.exists() and not path.is_file():
            path.write_bytes(raw)
            return path
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    return path


@contextmanager
def explained_if_full(folder: str | os.PathLike[str], what: str, needed_bytes: Callable[[], int]) -> Iterator[None]:
    """Inside, errors of any library that mean a full disk become a `DiskFullError`.

    Args:
        folder (`str` or `PathLike`): where files are written.
        what (`str`): the name of what is written.
        needed_bytes (callable): about how many bytes it takes.

    Raises:
        DiskFullError: with the path, and needed and free bytes.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not _means_full(error):
            raise
        place = Path(os.path.abspath(folder))
        free = shutil.disk_usage(next(path for path in [place, *place.parents] if path.exists())).free
        raise DiskFullError(
            f"the disk of {os.fspath(folder)} is full: {what} needs about {needed_bytes()} bytes, and {free} bytes are "
            "free (less where a quota or a limit on file sizes applies). Make room or choose another folder; what was "
            "saved before is whole"
        ) from error


def _means_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(text in str(error) for text in _FULL_TEXTS)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
