"""How a worker ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.Enum):
    """Why a worker answers no more. All but the last two are the doing of its program."""

    EXITED = "exited"
    """The program ended its process, or crashed it."""
    TIMEOUT = "timeout"
    """It used up its processor time, or its time on the clock."""
    MEMORY = "memory"
    """It ended because there was no memory left for it."""
    OUTPUT = "output"
    """It printed or wrote too much."""
    BROKEN = "broken"
    """It sent something that is not a short line of JSON with an object."""
    CLOSED = "closed"
    """The session is closed: the caller did not need it any more."""
    KILLED = "killed"
    """Somebody else killed it, perhaps the kernel because the machine ran out of memory."""
    UNAVAILABLE = "unavailable"
    """It did not start, or the process that forked it is gone."""

    @property
    def is_infrastructure(self) -> bool:
        """Whether the program is not to blame, so that nothing is known about it."""
        return self in (Outcome.KILLED, Outcome.UNAVAILABLE)


@dataclass(frozen=True)
class Ended:
    """The end of a worker.

    Attributes:
        outcome (`Outcome`): why.
        detail (`str`): for people: an exit code, a signal, a limit.
        cpu_s (`float`): processor time that it used, in seconds.
    """

    outcome: Outcome
    detail: str = ""
    cpu_s: float = 0.0


class WorkerEndedError(Exception):
    """A worker ended before it answered. Callers inside this package turn it into a verdict.

    Args:
        ended (`Ended`): how it ended.
    """

    def __init__(self, ended: Ended) -> None:
        super().__init__(f"the worker ended: {ended.outcome.value} ({ended.detail})")
        self.ended = ended
