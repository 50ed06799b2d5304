"""The lines of JSON between a caller and a worker. Nothing that a worker sends is trusted: no length, no form."""

from __future__ import annotations

import json
import os
from typing import Any

MAX_LINE_BYTES = 2**21
_CHUNK_BYTES = 2**16


class ChannelError(Exception):
    """The other side sent something that is not a line of JSON with an object, or this side wants to."""


def to_line(message: dict[str, Any]) -> bytes:
    """A message as a line.

    Raises:
        ChannelError: it is too long, or no JSON.
    """
    try:
        line = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ChannelError(f"no JSON: {error}") from None
    if len(line) > MAX_LINE_BYTES:
        raise ChannelError(f"{len(line)} bytes, at most {MAX_LINE_BYTES} fit")
    return line


class LineReader:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Takes what has arrived."""
        self._unread += data

    def next_message(self) -> dict[str, Any] | None:
        """The next whole message, `None` if more has to arrive.

        Raises:
            ChannelError: the line is too long, no JSON, or no object.
        """
        end = self._unread.find(b"\n", self._searched)
        if max(end, len(self._unread) if end < 0 else 0) > MAX_LINE_BYTES:
            raise ChannelError(f"a line of more than {MAX_LINE_BYTES} bytes")
        if end < 0:
            self._searched = len(self._unread)
            return None
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        self._searched = 0
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ChannelError("a line that is no JSON") from None
        if not isinstance(message, dict):
            raise ChannelError("a line that is no object")
        return message


class Channel:
    """The worker's side of a channel: it waits as long as it must.

    Args:
        descriptor (`int`): of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lines = LineReader()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message.

        Raises:
            ChannelError: it is too long, or no JSON; nothing is sent.
        """
        line = to_line(message)
        while line:
            line = line[os.write(self.descriptor, line) :]

    def receive(self) -> dict[str, Any] | None:
        """The next message, `None` when the caller has closed the session.

        Raises:
            ChannelError: something that is no message.
        """
        while (message := self._lines.next_message()) is None:
            data = os.read(self.descriptor, _CHUNK_BYTES)
            if not data:
                return None
            self._lines.feed(data)
        return message
