"""Files that are written atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, data: str | bytes) -> Path:
    """Writes a file atomically, by renaming a temporary file in the same folder.

    Args:
        path (`str` or `Path`): replaced if it exists. Devices and pipes (`/dev/stdout`) are written to directly.
        data (`str` or `bytes`): text is written in UTF-8; half a character pair (a lone surrogate) becomes `?`.

    Returns:
        `Path`: the path of the file.

    Raises:
        OSError: the folder is missing or not writable; the former file is unchanged.

    Example:

    >>> import tempfile
    >>> write_whole(Path(tempfile.mkdtemp()) / "notes.txt", "whole").read_text()
    'whole'
    """
    path = Path(path)
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
