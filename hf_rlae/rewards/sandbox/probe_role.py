"""A worker that tries what it must not be able to do, and says what worked. The pool asks it before it uses one."""

from __future__ import annotations

import _thread
import os
import socket
from collections.abc import Callable

from hf_rlae.rewards.sandbox.channel import Channel


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, RuntimeError):
        return False
    return True


def _fork() -> None:
    if not os.fork():
        os._exit(0)


def _own_folder() -> None:
    with open("probe", "w") as file:
        file.write("x")
    os.unlink("probe")


def main(channel: Channel) -> None:
    """Answers one message."""
    channel.receive()
    channel.send(
        {
            "allowed": {
                "its own folder": _works(_own_folder),
                "the standard library": _works(lambda: __import__("colorsys")),
            },
            "forbidden": {
                "reading files": _works(lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))),
                "listing folders": _works(lambda: os.listdir("/")),
                "writing files": _works(lambda: os.close(os.open("../probe", os.O_CREAT | os.O_WRONLY))),
                "sockets": _works(socket.socket),
                "processes": _works(_fork),
                "threads": _works(lambda: _thread.start_new_thread(int, ())),
                "signals": _works(lambda: os.kill(os.getppid(), 0)),
            },
        }
    )
