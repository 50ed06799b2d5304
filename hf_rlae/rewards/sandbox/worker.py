"""A worker: the process that runs one program. A zygote forks it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import NoReturn

from hf_rlae.rewards.sandbox.channel import Channel
from hf_rlae.rewards.sandbox.lockdown import CHANNEL, Allowance, Cell, lock_down

NO_MEMORY = 86
"""The exit code of a worker that ran out of memory."""


def run(role: Callable[[Channel], None], zygote: int, channel: int, cell: Cell, allowance: Allowance) -> NoReturn:
    """Locks this process down, says so, plays a role, and ends the process.

    Args:
        role: what to do with the channel.
        zygote, channel, cell, allowance: see `lock_down`.
    """
    leave = os._exit  # a program may replace it
    code = 1
    try:
        try:
            lock_down(zygote, channel, cell, allowance)
            said: dict[str, object] = {"locked": True}
        except OSError as error:
            said = {"locked": False, "reason": str(error)}
        gc.enable()
        own = Channel(CHANNEL if said["locked"] else channel)
        own.send(said)
        if said["locked"]:
            role(own)
        code = 0
    except MemoryError:
        code = NO_MEMORY
    finally:
        leave(code)
