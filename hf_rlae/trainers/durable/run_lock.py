"""One run per output folder: a lock that its owner holds while it trains."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from hf_rlae.errors import FolderInUseError
from hf_rlae.files import write_whole

logger = logging.getLogger(__name__)

# transformers does not upload names that begin with an underscore
LOCK, OWNER = "_hf_rlae.lock", "_hf_rlae_owner.json"


class RunLock:
    """A lock on an output folder. The operating system releases it when its owner ends, however it ends.

    Args:
        folder (`str` or `Path`): created if it does not exist.

    Raises:
        FolderInUseError: another run has the lock; the message names its process and its host.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(str(self.folder / LOCK))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FolderInUseError(
                f"{self.folder} is the output_dir of another run ({self._owner()}), which trains now; give another "
                "output_dir, or wait for its end"
            ) from None
        except (OSError, NotImplementedError) as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s); make sure that no other run uses it", self.folder, error)
        else:
            told = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
            with contextlib.suppress(OSError):  # it is for messages alone; a full disk is told when something is saved
                write_whole(self.folder / OWNER, json.dumps(told))

    def release(self) -> None:
        """Gives the folder back; it keeps no file of the lock."""
        if self._lock.is_locked:
            for name in (OWNER, LOCK):
                with contextlib.suppress(OSError):  # Windows does not delete open files; there filelock does it later
                    (self.folder / name).unlink()
            self._lock.release()

    def _owner(self) -> str:
        try:
            told = json.loads((self.folder / OWNER).read_text())
            return f"process {told['pid']} on {told['host']}, since {told['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "of an unknown process"
