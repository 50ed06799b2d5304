"""Limits of the server: bytes of a body, requests at a time, seconds of a request, connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from hf_rlae.errors import one_line, with_type
from hf_rlae.serving.handlers import error_body

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the server.

    Attributes:
        body_bytes (`int`): of a request; larger ones get 413.
        requests (`int`): that run or wait at a time; further ones get 429.
        body_seconds (`float`): until a body has arrived; then 408.
        request_seconds (`float`): until a response has been sent; then 504, or the stream ends.
        connections (`int`): at a time; further ones are closed.
        idle_seconds (`float`): for which a connection may send no whole request.
    """

    body_bytes: int = 1_000_000
    requests: int = 8
    body_seconds: float = 10.0
    request_seconds: float = 600.0
    connections: int = 512
    idle_seconds: float = 15.0


class LimitedApp:
    """An ASGI application within limits.

    It reads the body of a request before the application sees it, and cancels the application if the client goes away.

    Args:
        app: the application.
        limits (`Limits`): its limits.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] != "POST":
            await self._within_time(scope, _no_body, receive, send)
        elif self._running >= self._limits.requests:
            message = f"the server answers {self._limits.requests} requests at a time; try again later"
            await _refuse(send, 429, message, (b"retry-after", b"1"))
        else:
            self._running += 1
            try:
                await self._post(scope, receive, send)
            finally:
                self._running -= 1

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        limits = self._limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            await _refuse(
                send, 408, f"the body has not arrived in {limits.body_seconds:g} s", (b"connection", b"close")
            )
            return
        if body is None:
            await _refuse(send, 413, f"the body has more than {limits.body_bytes} bytes; send less text")
            return

        async def read() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._within_time(scope, read, receive, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The body, or `None` if it is too large."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._limits.body_bytes:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._limits.body_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _within_time(self, scope: Message, read: Receive, receive: Receive, send: Send) -> None:
        started, is_read = asyncio.Event(), False

        async def note(message: Message) -> None:
            started.set()
            await send(message)

        async def once() -> Message:
            nonlocal is_read
            if is_read:
                await asyncio.Event().wait()  # until cancelled; `gone` watches the connection
            is_read = True
            return await read()

        answer = asyncio.ensure_future(self._app(scope, once, note))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait(
                (answer, gone), timeout=self._limits.request_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            is_late = not answer.done() and not gone.done()
            for task in (answer, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._finished(answer)
        if is_late and not started.is_set():
            message = f"the answer took longer than {self._limits.request_seconds:g} s; ask for fewer tokens"
            await _refuse(send, 504, message)

    async def _finished(self, answer: asyncio.Future[None]) -> None:
        try:
            await answer
        except Exception as error:  # the application has answered with 500
            logger.error("a request failed: %s", with_type(error, one_line(str(error))))
            logger.debug("where it failed", exc_info=True)


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(error_body(status, message)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with a limit of connections, and of the time in which a connection sends no request.

    uvicorn waits for ever for the headers of a request, and for a client that does not read.
    """

    class LimitedProtocol(H11Protocol):
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            """Closes the connection if there are too many."""
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self.loop.call_later(limits.idle_seconds, self._look, self.cycle)

        def _look(self, before: Any) -> None:
            """Closes the connection if it has begun no request since the last look, and answers none."""
            if self not in self.connections:
                return
            is_idle = self.cycle is None or self.cycle.response_complete
            if self.transport.is_closing() or (is_idle and self.cycle is before):
                self.transport.abort()
            else:
                self.loop.call_later(limits.idle_seconds, self._look, self.cycle)

    return LimitedProtocol
