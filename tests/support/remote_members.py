"""Remote members whose worker is in this process: everything that is sent is pickled, as between processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from hf_rlae.members import RemoteMember
from hf_rlae.members.remote.host import Worker


class Loopback:
    """A `Link` to a worker in this process, which records what happens.

    Attributes:
        log (`list[tuple[str, str]]`): `("call" | "wait", member)`, in order; links may share one.
        fault (`Exception` or `None`): what `wait` raises, from the next call on.
        after (`int`): number of calls that are still answered before `fault`.
    """

    def __init__(self, name: str, log: list[tuple[str, str]] | None = None) -> None:
        self.name = name
        self.worker = Worker()
        self.log = [] if log is None else log
        self.fault: Exception | None = None
        self.after = 0
        self.is_closed = False

    def call(self, method: str, *arguments: Any) -> bytes | Exception:
        """See `Link`."""
        if self.fault is not None:
            self.after -= 1
            if self.after < 0:
                return self.fault
        self.log.append(("call", self.name))
        return pickle.dumps(getattr(self.worker, method)(*pickle.loads(pickle.dumps(arguments))))

    def wait(self, call: bytes | Exception, timeout: float) -> Any:
        """See `Link`."""
        self.log.append(("wait", self.name))
        if isinstance(call, Exception):
            raise call
        return pickle.loads(call)

    def close(self) -> None:
        """See `Link`."""
        self.is_closed = True


def remote(folder: Any, log: list[tuple[str, str]] | None = None, **options: Any) -> RemoteMember:
    """A remote member in this process."""
    link: Callable[[str], Loopback] = lambda name: Loopback(name, log)  # noqa: E731
    return RemoteMember.load(str(folder), link=link, **options)
