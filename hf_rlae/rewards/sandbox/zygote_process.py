"""The caller's side of one zygote."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import weakref
from pathlib import Path

from hf_rlae.errors import SandboxUnavailableError, shortened
from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.session import Session

_START_S = 60.0
_REQUEST_S = 30.0
_STOP_S = 5.0
_PAGE_BYTES = 4096
_INTERPRETER_BYTES = 256 * 2**20


class ZygoteProcess:
    """A zygote, started.

    Args:
        backend (`str`): see `backends.command`.

    Raises:
        SandboxUnavailableError: it did not start; the message says why.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.sessions = 0
        self.scratch = tempfile.mkdtemp(prefix="hf-rlae-sandbox-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        caller, errors = os.pidfd_open(os.getpid()), os.memfd_create("errors")
        try:
            self._process = subprocess.Popen(  # noqa: S603 (this interpreter, no shell)
                backends.command(backend, self.scratch, theirs.fileno(), caller),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs.fileno(), caller),
                env=_environment(),
                cwd="/",
                start_new_session=True,  # so that Ctrl-C is for the caller alone
            )
            theirs.close()
            self.pid = self._await_ready(errors)
        except BaseException:
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise
        finally:
            theirs.close()
            os.close(caller)
            os.close(errors)
        self._interpreter_bytes = _address_space(self.pid)
        self.stop = weakref.finalize(self, _stop, os.getpid(), self._process, self._control, self.pid, self.scratch)

    def _await_ready(self, errors: int) -> int:
        self._control.settimeout(_START_S)
        said, ancillary = b"", list[tuple[int, int, bytes]]()
        with contextlib.suppress(OSError):
            said, ancillary, *_ = self._control.recvmsg(64, socket.CMSG_SPACE(12))
        self._control.settimeout(_REQUEST_S)
        if said != b"ready":
            self._process.kill()
            self._process.wait()
            text = os.pread(errors, 4096, 0).decode(errors="replace").strip()
            last = text.splitlines()[-1] if text else f"exit code {self._process.returncode}"
            raise SandboxUnavailableError(f"{self.backend}: its process does not start: {shortened(last)}")
        # with bubblewrap it is not the process that was started; the kernel translates the number
        return int(struct.unpack("iII", ancillary[0][2])[0])

    def session(self, role: str, limits: SandboxLimits) -> Session:
        """A worker that starts. Nothing may be sent to it before `await_locked`.

        Raises:
            OSError: the zygote is gone.
        """
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        status, its_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        allowance = {
            "cpu_s": limits.cpu_s,
            # tests wait while their program computes
            "wall_s": limits.longest_s if role == "tests" else limits.wall_s,
            "longest_s": limits.longest_s,
            "memory_bytes": self._interpreter_bytes + limits.memory_mb * 2**20,
            "output_bytes": limits.output_kb * 2**10,
        }
        request = json.dumps({"role": role, "allowance": allowance}).encode()
        try:
            with theirs, its_status:
                socket.send_fds(self._control, [request], [theirs.fileno(), its_status.fileno()])
        except OSError:
            channel.close()
            status.close()
            raise
        return Session(channel, status, limits.longest_s)


def _environment() -> dict[str, str]:
    """No secrets, and the same order of sets in each zygote; what shared builds of Python need."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PYTHONHASHSEED": "0", "TZ": "UTC0", "LC_ALL": "C.UTF-8", **kept}


def _address_space(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * _PAGE_BYTES
    except OSError:
        return _INTERPRETER_BYTES


def _stop(owner: int, process: subprocess.Popen, control: socket.socket, pid: int, scratch: str) -> None:
    """Ends a zygote. In a forked process, only the copy of its socket is closed."""
    if owner != os.getpid():
        control.close()
        return
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)
    control.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
    shutil.rmtree(scratch, ignore_errors=True)
