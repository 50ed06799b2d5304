"""A worker as its zygote sees it: watched, killed, and reported."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time

from hf_rlae.rewards.sandbox import folders, kernel, worker
from hf_rlae.rewards.sandbox.lockdown import Allowance, Cell
from hf_rlae.rewards.sandbox.outcomes import Outcome

_TICK_S = 0.05
_SHORTEST_WAIT_S = 0.002
_MOST_FILES = 256
_WINDOW_S = 1.0
_WORKING_SHARE = 0.001


class Running:
    """A worker that runs.

    Args:
        pid (`int`): the process, a child of this one.
        status (`socket.socket`): where its end is reported. The caller closes the other side when it needs the worker
            no more.
        cell (`Cell`): where it runs.
        allowance (`Allowance`): what it may use.
    """

    def __init__(self, pid: int, status: socket.socket, cell: Cell, allowance: Allowance) -> None:
        self.pid, self.status, self.cell, self.allowance = pid, status, cell, allowance
        self.ended = os.pidfd_open(pid)
        self._began = self._seen_at = time.monotonic()
        self._seen_cpu_s = self._idle_s = 0.0
        self._reason: tuple[Outcome, str] | None = None

    def listen(self, events: select.poll) -> None:
        """Waits for its end, and for the caller's."""
        events.register(self.ended, select.POLLIN)
        events.register(self.status.fileno(), select.POLLIN)

    def check(self) -> float:
        """Kills it if it used too much.

        Returns:
            `float`: the seconds after which the next check is due.
        """
        cpu_s = self._cpu_s()
        cpu_left_s = self.allowance.cpu_s - cpu_s
        wall_left_s = self._wall_left_s(cpu_s)
        if cpu_left_s <= 0:
            self.kill(Outcome.TIMEOUT, f"{self.allowance.cpu_s:g} s of processor time")
        elif wall_left_s <= 0:
            self.kill(Outcome.TIMEOUT, f"{self.allowance.wall_s:g} s on the clock")
        elif folders.holds_more_than(self.cell.folder, _MOST_FILES):
            self.kill(Outcome.OUTPUT, f"more than {_MOST_FILES} files")
        return max(_SHORTEST_WAIT_S, min(_TICK_S, cpu_left_s, wall_left_s))

    def _wall_left_s(self, cpu_s: float) -> float:
        """Seconds on the clock that are left. A machine may be so busy that a program waits for a processor most of
        the time, so its clock stands still in each second in which it computes, until the longest time is over.
        """
        now = time.monotonic()
        passed_s = now - self._seen_at
        if passed_s >= min(_WINDOW_S, self.allowance.wall_s / 10):
            if cpu_s - self._seen_cpu_s < _WORKING_SHARE * passed_s:
                self._idle_s += passed_s
            self._seen_at, self._seen_cpu_s = now, cpu_s
        return min(self.allowance.wall_s - self._idle_s, self.allowance.longest_s - (now - self._began))

    def _cpu_s(self) -> float:
        try:
            return time.clock_gettime(kernel.processor_clock(self.pid))
        except OSError:  # it has just ended
            return 0.0

    def kill(self, outcome: Outcome, detail: str) -> None:
        """Kills it; the first reason counts."""
        self._reason = self._reason or (outcome, detail)
        os.kill(self.pid, signal.SIGKILL)

    def finish(self, events: select.poll) -> bool:
        """Reports how it ended, and empties its folder.

        Returns:
            `bool`: whether the folder is empty.
        """
        _, status, usage = os.wait4(self.pid, 0)
        cpu_s = usage.ru_utime + usage.ru_stime
        outcome, detail = self._outcome(os.waitstatus_to_exitcode(status), cpu_s)
        with contextlib.suppress(OSError):  # the caller is not interested
            self.status.send(json.dumps({"outcome": outcome.value, "detail": detail, "cpu_s": cpu_s}).encode())
        for descriptor in (self.ended, self.status.fileno()):
            with contextlib.suppress(KeyError):
                events.unregister(descriptor)
        os.close(self.ended)
        self.status.close()
        try:
            folders.empty(self.cell.folder)
        except OSError:  # nothing that a worker can do is known to lead here
            return False
        return True

    def _outcome(self, code: int, cpu_s: float) -> tuple[Outcome, str]:
        if self._reason and code == -signal.SIGKILL:
            return self._reason
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_s >= self.allowance.cpu_s):
            return Outcome.TIMEOUT, f"{self.allowance.cpu_s:g} s of processor time"
        if code == -signal.SIGKILL:
            return Outcome.KILLED, "SIGKILL"
        if code == -signal.SIGXFSZ:
            return Outcome.OUTPUT, f"{self.allowance.output_bytes} bytes"
        if code == worker.NO_MEMORY:
            return Outcome.MEMORY, f"{self.allowance.memory_bytes} bytes"
        return Outcome.EXITED, f"exit code {code}" if code >= 0 else _signal_name(-code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
