"""A pool of processes that run math-verify, with a time limit for each text. See `math_worker`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

from hf_rlae.errors import RewardUnavailableError

_START_S = 120.0
_GRACE_S = 10.0
_LEAST_JUDGES = 4


def most_judges() -> int:
    """How many texts are judged at the same time: as many as there are cores, and at least four.

    Example:

    >>> most_judges() >= 4
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(_LEAST_JUDGES, min(cores, 16))


class MathPool:
    """Judges pairs of an answer and a text in other processes. Threads may share it.

    The processes start with the first pair and end with this object, or with the Python process. A copy in a forked
    process starts its own.

    Args:
        timeout_s (`float`): seconds for one pair, from when its judging begins.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """The verdicts on pairs of an answer and a text: "right", "wrong", "unreadable" (the answer) or "failed".

        Raises:
            RewardUnavailableError: the processes do not start.
        """
        verdicts = self._running().ask(pairs, self.timeout_s)
        lost = [at for at, verdict in enumerate(verdicts) if not verdict]
        if lost:  # the server was killed: once more
            again = self._running().ask([pairs[at] for at in lost], self.timeout_s)
            for at, verdict in zip(lost, again, strict=True):
                verdicts[at] = verdict
        return [verdict or "failed" for verdict in verdicts]

    def _running(self) -> _Server:
        with self._lock:
            server = self._server
            if server is None or server.owner != os.getpid() or not server.is_alive:
                server = self._server = _Server(most_judges(), self.timeout_s)
                weakref.finalize(self, server.stop)
            return server

    @property
    def pid(self) -> int | None:
        """The process that forks the others, if it has started."""
        return self._server.process.pid if self._server else None


class _Server:
    """The process that forks judges, and the thread that reads its verdicts."""

    def __init__(self, count: int, timeout_s: float) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.owner = os.getpid()
        self.is_alive = True
        self._ids = itertools.count()
        self._asked: dict[int, Future[str]] = {}
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self.process = subprocess.Popen(  # noqa: S603 (this interpreter, a file of this package, no shell)
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py")), str(count), str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        started: Future[str] = Future()
        threading.Thread(target=self._read, args=(started,), daemon=True).start()
        try:
            is_ready = bool(started.result(_START_S))
        except FutureTimeoutError:
            is_ready = False
        if not is_ready:
            self.stop()
            raise RewardUnavailableError(
                "math_verify: the process that runs math-verify did not start; try "
                f"`{sys.executable} -c 'import math_verify'`"
            )

    def ask(self, pairs: Sequence[tuple[str, str]], timeout_s: float) -> list[str]:
        """The verdicts; empty ones if the process has ended."""
        futures: list[Future[str]] = []
        lines = []
        with self._lock:
            for answer, text in pairs:
                number = next(self._ids)
                futures.append(Future())
                if self.is_alive:
                    self._asked[number] = futures[-1]
                else:
                    futures[-1].set_result("")
                lines.append(json.dumps({"id": number, "answer": answer, "text": text}) + "\n")
        self._write("".join(lines).encode())
        # a server that hangs, which nothing is known to cause, must not hang the training
        limit = timeout_s * (len(self._asked) + 1) + _GRACE_S
        try:
            return [future.result(limit) for future in futures]
        except FutureTimeoutError:
            self.stop()
            return [future.result() for future in futures]

    def _write(self, data: bytes) -> None:
        with self._write_lock:
            try:
                self.process.stdin.write(data)  # type: ignore[union-attr]
                self.process.stdin.flush()  # type: ignore[union-attr]
            except (OSError, ValueError):  # it has ended, and the reading thread answers for it
                pass

    def _read(self, started: Future[str]) -> None:
        with self.process.stdout as lines:  # type: ignore[union-attr]
            started.set_result(lines.readline().decode().strip())
            for line in lines:
                number, verdict = json.loads(line)
                with self._lock:
                    self._asked.pop(number).set_result(verdict)
        with self._lock:
            self.is_alive = False
            for future in self._asked.values():
                future.set_result("")
            self._asked.clear()
        self.process.wait()

    def stop(self) -> None:
        """Ends the processes. A copy of this object in a forked process leaves them alone."""
        if self.owner != os.getpid():
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
