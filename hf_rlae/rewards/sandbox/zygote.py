"""The zygote: a small Python process that forks a locked-down worker for each session.

`zygote_process` starts it as a program of its own, so that it holds nothing of the caller's memory, environment and
descriptors. It runs no program of a model itself. It ends when the caller closes its end of the socket or is gone, and
its workers end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import time
from pathlib import Path

from hf_rlae.rewards.sandbox import folders, kernel, landlock, seccomp, worker
from hf_rlae.rewards.sandbox.lockdown import Allowance, Cell
from hf_rlae.rewards.sandbox.outcomes import Outcome
from hf_rlae.rewards.sandbox.roles import ROLES
from hf_rlae.rewards.sandbox.running import Running

# fmt: off
_PRELOADED = (
    "array", "abc", "ast", "base64", "bisect", "calendar", "cmath", "collections.abc", "contextlib", "copy", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "enum", "errno", "fractions", "functools", "hashlib", "heapq",
    "inspect", "io", "itertools", "json", "keyword", "locale", "math", "numbers", "operator", "pprint", "queue",
    "random", "re", "secrets", "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "traceback",
    "types", "typing", "unicodedata", "uuid", "zlib",
)
# fmt: on
_NOT_STANDARD = ("site-packages", "dist-packages", "test", "idlelib", "tkinter", "turtledemo", "ensurepip")
_LIBRARIES = ("bz2", "crypto", "expat", "ffi", "lzma", "mpdec", "sqlite3", "ssl", "uuid", "z", "zstd")
"""What modules of the standard library link to, as far as workers can use them."""
_LIBRARY_FOLDERS = (Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"))
_SHARED_DATA = (Path("/etc/ld.so.cache"), Path("/usr/share/zoneinfo"))
_REQUEST_BYTES = 4096


def library_folders() -> list[Path]:
    """The folders of the standard library. Imports list them again when they have changed."""
    return sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})


def readable_paths() -> list[Path]:
    """What holds the standard library, without the packages that are installed beside it."""
    entries = [entry for folder in library_folders() for entry in sorted(folder.iterdir())]
    places = (*_LIBRARY_FOLDERS, Path(sys.base_prefix) / "lib")
    libraries = [file for place in places for name in _LIBRARIES for file in place.glob(f"lib{name}.so*")]
    return [*(entry for entry in entries if entry.name not in _NOT_STANDARD), *libraries, *_SHARED_DATA]


class Zygote:
    """Forks workers and watches them until the caller is gone.

    Args:
        control (`socket.socket`): where the caller asks for workers.
        caller (`int`): a descriptor that can be read when the caller's process has ended.
        scratch (`Path`): an empty folder, in which each worker gets one.
        is_isolated (`bool`): whether landlock and seccomp lock workers down.
    """

    def __init__(self, control: socket.socket, caller: int, scratch: Path, is_isolated: bool) -> None:
        self.control, self.caller, self.scratch = control, caller, scratch
        self.roles = {role: importlib.import_module(f"hf_rlae.rewards.sandbox.{role}_role").main for role in ROLES}
        self._instructions: ctypes.Array | None = seccomp.compiled() if is_isolated else None
        self._numbers = itertools.count()
        self._free: list[Cell] = []
        self._free = [self._cell()]
        self._running: dict[int, Running] = {}  # by both descriptors of each
        self._events = select.poll()
        for descriptor in (control.fileno(), caller):
            self._events.register(descriptor, select.POLLIN)
        self._next_check = 0.0

    def serve(self) -> None:
        """Works until the caller is gone."""
        while True:
            wait_ms = max(0.0, self._next_check - time.monotonic()) * 1000 if self._running else None
            heard = [descriptor for descriptor, _ in self._events.poll(wait_ms)]
            for descriptor in heard:
                self._hear(descriptor)
            # last, because a new worker may get the descriptors of one that has just ended
            if self.caller in heard or (self.control.fileno() in heard and not self._accept()):
                return
            if self._running and time.monotonic() >= self._next_check:
                self._check()

    def _hear(self, descriptor: int) -> None:
        """A worker has ended, or its caller needs it no more."""
        worker_of_it = self._running.get(descriptor)
        if worker_of_it is None:
            return
        if descriptor != worker_of_it.ended:
            self._events.unregister(descriptor)
            worker_of_it.kill(Outcome.CLOSED, "")
            return
        for each in (worker_of_it.ended, worker_of_it.status.fileno()):
            del self._running[each]
        if worker_of_it.finish(self._events):
            self._free.append(worker_of_it.cell)
        elif worker_of_it.cell.rules is not None:
            os.close(worker_of_it.cell.rules)

    def _check(self) -> None:
        self._next_check = time.monotonic() + min(each.check() for each in set(self._running.values()))

    def _accept(self) -> bool:
        """Forks a worker for a request; says whether the caller is still there."""
        request, descriptors, _, _ = socket.recv_fds(self.control, _REQUEST_BYTES, 2)
        if not request:
            return False
        asked = json.loads(request)
        channel, status = descriptors
        role = self.roles[asked["role"]]
        allowance = Allowance(**asked["allowance"])
        cell = self._cell()
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # too many processes, too little memory: the caller sees that the status is closed
            self._free.append(cell)
            os.close(status)
        else:
            if not pid:
                worker.run(role, zygote, channel, cell, allowance)
            one = Running(pid, socket.socket(fileno=status), cell, allowance)
            one.listen(self._events)
            self._running[one.ended] = self._running[status] = one
            self._next_check = 0.0
        os.close(channel)
        return True

    def _cell(self) -> Cell:
        if self._free:
            return self._free.pop()
        folder = self.scratch / str(next(self._numbers))
        folder.mkdir(mode=0o700)
        rules = None
        if self._instructions is not None:
            rules = landlock.ruleset(folder, readable_paths(), library_folders())
        return Cell(folder, rules, self._instructions)

    def close(self) -> None:
        """Ends the workers, and removes the folders."""
        for each in set(self._running.values()):
            each.kill(Outcome.CLOSED, "")
            each.finish(self._events)
        with contextlib.suppress(OSError):  # the caller tries it as well
            folders.empty(self.scratch)
            os.rmdir(self.scratch)


def main(control: int, caller: int, scratch: str, is_isolated: bool) -> None:
    """The program of a zygote: says that it is ready, and works.

    Args:
        control (`int`), caller (`int`): descriptors, see `Zygote`.
        scratch (`str`), is_isolated (`bool`): see `Zygote`.
    """
    os.environ.clear()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the caller's choices are inherited
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    kernel.forbid_new_privileges()
    if is_isolated:
        kernel.drop_capabilities()
    for name in _PRELOADED:
        importlib.import_module(name)
    zygote = Zygote(socket.socket(fileno=control), caller, Path(scratch), is_isolated)
    gc.collect()
    gc.disable()
    gc.freeze()  # so that workers share this memory
    zygote.control.send(b"ready")
    try:
        zygote.serve()
    finally:
        zygote.close()
    sys.exit(0)
