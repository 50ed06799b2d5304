"""What hostile programs try to reach, watched from outside."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_rlae.errors import SandboxUnavailableError
from hf_rlae.rewards.sandbox import landlock
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.outcomes import Ended, WorkerEndedError
from hf_rlae.rewards.sandbox.pool import Sandbox
from tests.unit.rewards.sandbox.attacks import ESCAPED, KEY, MARK, PRELUDE, Attack

_WATCHED = ("/tmp", "/var/tmp", "/dev/shm", "/root", "/", tempfile.gettempdir())  # noqa: S108 (looked at, not used)
_SETTLES_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36


def has_landlock() -> bool:
    """Whether this machine can isolate programs by landlock."""
    try:
        return sys.platform == "linux" and platform.machine() == "x86_64" and landlock.version() > 0
    except OSError:
        return False


def available(backend: str, limits: SandboxLimits) -> Sandbox:
    """A sandbox with one backend. Skips the test if this machine has it not, but landlock is there where it can be.

    The environment of this process holds a secret while it starts.
    """
    made = Sandbox(limits, backend=backend)
    os.environ["HF_RLAE_TEST_SECRET"] = "hf-rlae-secret-of-the-environment"
    try:
        assert made.backend == backend
    except SandboxUnavailableError as error:
        if backend == "landlock" and has_landlock():
            raise
        pytest.skip(str(error))
    finally:
        del os.environ["HF_RLAE_TEST_SECRET"]
    return made


class World:
    """A secret, a folder, a process and sockets that a program must not touch.

    Args:
        folder (`Path`): an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.secret = f"hf-rlae-secret-{secrets.token_hex(8)}"
        self.outside = folder / "outside"
        self.outside.mkdir()
        self.secret_file = self.outside / "secret.txt"
        self.secret_file.write_text(self.secret)
        self.abstract = f"hf-rlae-{secrets.token_hex(8)}"
        self.victim = subprocess.Popen(["/bin/sleep", "1000"])
        self.signals: list[int] = []
        self.sockets = {
            "tcp": socket.create_server(("127.0.0.1", 0)),
            "udp": socket.socket(type=socket.SOCK_DGRAM),
            "path": socket.socket(socket.AF_UNIX),
            "abstract": socket.socket(socket.AF_UNIX),
            "abstract packets": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        }
        self.port = self.sockets["tcp"].getsockname()[1]
        self.sockets["udp"].bind(("127.0.0.1", self.port))
        self.path = str(folder / "socket")
        self.sockets["path"].bind(self.path)
        for name in ("abstract", "abstract packets"):
            self.sockets[name].bind(f"\0{self.abstract}{' packets' * (name != 'abstract')}")
        for name in ("path", "abstract"):
            self.sockets[name].listen()
        for each in self.sockets.values():
            each.setblocking(False)
        self.before = self._state()

    def program(self, attack: Attack) -> str:
        """The text of an attack, with the names that it uses."""
        names = {
            "SECRET_FILE": str(self.secret_file),
            "OUTSIDE": str(self.outside),
            "PORT": self.port,
            "SOCKET": self.path,
            "ABSTRACT": self.abstract,
            "CALLER": os.getpid(),
            "VICTIM": self.victim.pid,
            "KEY": KEY,
        }
        return PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in names.items()) + attack.program

    def _state(self) -> dict[str, object]:
        found = {path.name: path.lstat() for path in (self.outside, self.secret_file)}
        return {
            "files": sorted(os.listdir(self.outside)),
            "secret": self.secret_file.read_text(),
            "rights": [(name, status.st_mode, status.st_uid, status.st_mtime_ns) for name, status in found.items()],
            "attributes": os.listxattr(self.secret_file),
            "priority": os.getpriority(os.PRIO_PROCESS, self.victim.pid),
            "marks": sorted({path for folder in _WATCHED for path in glob.glob(f"{folder}/*{MARK}*")}),
            "shared": [
                line
                for name in ("shm", "sem", "msg")
                if (path := Path("/proc/sysvipc", name)).exists()
                for line in path.read_text().splitlines()
                if line.split()[0] == str(KEY)
            ],
        }

    def touched(self) -> list[str]:
        """What a program has reached; empty if nothing."""
        after = self._state()
        found = [f"{name}: {after[name]}" for name, value in self.before.items() if after[name] != value]
        if self.victim.poll() is not None or _is_stopped(self.victim.pid):
            found.append("a process was signalled")
        found += [f"signal {number}" for number in self.signals]
        for name, each in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                if each.type == socket.SOCK_DGRAM:
                    each.recv(100)
                else:
                    each.accept()[0].close()
                found.append(f"a socket: {name}")
        return found

    def close(self) -> None:
        """Ends the process and closes the sockets."""
        self.victim.kill()
        self.victim.wait()
        for each in self.sockets.values():
            each.close()


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """A world; signals to this process are counted while it exists."""
    made = World(folder)
    counted = (signal.SIGUSR1, signal.SIGTERM, signal.SIGIO)
    is_main = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, lambda number, _: made.signals.append(number)) for number in counted if is_main
    }
    try:
        yield made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        made.close()


def run(sandbox: Sandbox, source: str) -> str | Ended:
    """Runs a program: the name of the error that it raised, "" if none; or how its worker ended."""
    try:
        with sandbox.session("program") as session:
            answer = session.ask({"sources": [source]})
    except WorkerEndedError as error:
        return error.ended
    assert set(answer) == {"loaded"}
    return str(answer["loaded"])


def descendants(pid: int) -> set[int]:
    """The processes that descend from one and have not ended."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        inner = children.get(waiting.pop(), [])
        found |= {*inner}
        waiting += inner
    return found


def adopt_orphans(is_wanted: bool) -> None:
    """Whether this process becomes the parent of its descendants' orphans."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(is_wanted), 0, 0, 0) == 0


def settles(check: Callable[[], bool], seconds: float = _SETTLES_S) -> bool:
    """Whether something becomes true: a killed process needs a moment."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def has_escaped(answer: str | Ended, made: World) -> bool:
    """Whether a program told that it reached its aim, or the secret."""
    told = answer if isinstance(answer, str) else answer.detail
    return ESCAPED in told or made.secret in told
