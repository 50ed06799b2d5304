"""The caller's side of one worker."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from typing import Any

from hf_rlae.rewards.sandbox.channel import ChannelError, LineReader, to_line
from hf_rlae.rewards.sandbox.outcomes import Ended, Outcome, WorkerEndedError

_CHUNK_BYTES = 2**16
_GRACE_S = 30.0
"""How long after its time a worker may stay unreported; then its zygote is considered lost."""
_CLOSING_S = 5.0
"""How long a worker may live after it closed its channel."""


class Session:
    """Talks to one worker. One thread uses it.

    Args:
        channel (`socket.socket`): to the worker, which is not trusted.
        status (`socket.socket`): to its zygote, which says how the worker ended.
        wall_s (`float`): after which the zygote kills the worker.
    """

    def __init__(self, channel: socket.socket, status: socket.socket, wall_s: float) -> None:
        self._channel, self._status = channel, status
        self._owner = os.getpid()
        self._lines = LineReader()
        self._lost_at = time.monotonic() + wall_s + _GRACE_S
        self._ended: Ended | None = None
        channel.setblocking(False)
        self._either = select.poll()
        self._either.register(status, select.POLLIN)
        self._listen(select.POLLIN)

    def _listen(self, events: int) -> None:
        self._either.register(self._channel, events)

    def await_locked(self) -> Session:
        """Waits until the worker is locked down. It has not run anything yet.

        Raises:
            WorkerEndedError: it did not get that far.
            OSError: it cannot be locked down.
        """
        said = self.receive()
        if said != {"locked": True}:
            raise OSError(f"a worker cannot be locked down: {said.get('reason')}")
        return self

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends a message and waits for the next one of the worker. See `send` and `receive`."""
        self.send(message)
        return self.receive()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message.

        Raises:
            ChannelError: it is too long, or no JSON; nothing is sent.
            WorkerEndedError: the worker has ended.
        """
        line = memoryview(to_line(message))
        while line:
            self._refuse_if_ended()
            try:
                line = line[self._channel.send(line, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:  # a worker that does not read
                self._listen(select.POLLOUT)
                self._wait()
                self._listen(select.POLLIN)
            except OSError:
                self._await_end()

    def receive(self) -> dict[str, Any]:
        """The next message of the worker, an object of which nothing is known.

        Raises:
            WorkerEndedError: the worker ended, or sent something that is no message.
        """
        while True:
            self._refuse_if_ended()
            try:
                message = self._lines.next_message()
            except ChannelError as error:
                self._end(Ended(Outcome.BROKEN, str(error)))
                continue
            if message is not None:
                return message
            try:
                data = self._channel.recv(_CHUNK_BYTES)
            except BlockingIOError:
                self._wait()
                continue
            except OSError:
                data = b""
            if data:
                self._lines.feed(data)
            else:
                self._await_end()

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise WorkerEndedError(self._ended)

    def _wait(self) -> None:
        """Until the channel is ready, or the worker has ended."""
        ready = dict(self._either.poll(max(0.0, self._lost_at - time.monotonic()) * 1000))
        if not ready:
            self._end(Ended(Outcome.UNAVAILABLE, "nothing is heard of the zygote"))
        elif self._channel.fileno() not in ready:  # what a worker sends is there before word of its end
            self._await_end()

    def _await_end(self) -> None:
        """The worker's channel is closed: waits for the zygote's word on why."""
        self._status.settimeout(_CLOSING_S)
        try:
            report = self._status.recv(4096)
        except TimeoutError:
            self._end(Ended(Outcome.BROKEN, "it closed its channel"))
            return
        except OSError:
            report = b""
        if report:
            said = json.loads(report)
            self._end(Ended(Outcome(said["outcome"]), said["detail"], said["cpu_s"]))
        else:
            self._end(Ended(Outcome.UNAVAILABLE, "the zygote ended, or could not fork"))

    def _end(self, ended: Ended) -> None:
        self._ended = self._ended or ended
        for each in (self._channel, self._status):
            if self._owner == os.getpid():  # a forked process closes only its copies
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> Ended:
        """Ends the worker if it has not ended by itself.

        Returns:
            `Ended`: how it ended; `Outcome.CLOSED` if it was still there.
        """
        self._end(Ended(Outcome.CLOSED))
        return self._ended or Ended(Outcome.CLOSED)
