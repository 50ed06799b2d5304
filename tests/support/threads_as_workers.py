"""Workers of the split judge as threads of this process: for tests of what crosses, without any isolation."""

from __future__ import annotations

import contextlib
import importlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from hf_rlae.rewards.sandbox.outcomes import Ended, Outcome, WorkerEndedError
from hf_rlae.rewards.sandbox.pool import Failures

_LONGEST_S = 30.0


class Side:
    """One end of a channel in memory; messages are copied as lines of JSON."""

    def __init__(self, inbox: queue.Queue, outbox: queue.Queue) -> None:
        self.inbox, self.outbox = inbox, outbox

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        self.outbox.put(json.dumps(message))

    def receive(self) -> Any:
        """The next message; `None` when the other side is closed."""
        line = self.inbox.get(timeout=_LONGEST_S)
        return None if line is None else json.loads(line)


class CallerSide(Side):
    """The caller's end: a worker that has ended is an error."""

    def receive(self) -> Any:
        """The next message."""
        message = super().receive()
        if message is None:
            raise WorkerEndedError(Ended(Outcome.EXITED))
        return message


class ThreadsSandbox:
    """A sandbox that keeps nobody in.

    Args:
        place (callable, *optional*): gives the room for each program; threads by default.
    """

    num_places = 3

    def __init__(self, place: Callable[..., Any] | None = None) -> None:
        self.place = place or threads_place
        self.failures = Failures()


@contextlib.contextmanager
def threads_place(*soon: str) -> Iterator[Callable[[str], CallerSide]]:
    """Room for threads that play roles of the sandbox; they end with the block."""
    with contextlib.ExitStack() as ends:
        yield lambda role: _started(role, ends)


def _started(role: str, ends: contextlib.ExitStack) -> CallerSide:
    to_worker: queue.Queue = queue.Queue()
    to_caller: queue.Queue = queue.Queue()
    main = importlib.import_module(f"hf_rlae.rewards.sandbox.{role}_role").main

    def work() -> None:
        with contextlib.suppress(BaseException):
            main(Side(to_worker, to_caller))
        to_caller.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ends.callback(thread.join, _LONGEST_S)
    ends.callback(to_worker.put, None)
    return CallerSide(to_caller, to_worker)
