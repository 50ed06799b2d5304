"""What a worker gives up before it runs a program."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from hf_rlae.rewards.sandbox import kernel, landlock, seccomp

CHANNEL = 3
"""The descriptor of a worker's channel; its only others are standard input and the two of its output."""
_MOST_DESCRIPTORS = 64
_STACK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Allowance:
    """What one worker may use: `SandboxLimits`, with the memory that the interpreter uses itself.

    Attributes:
        cpu_s (`float`), wall_s (`float`): seconds of processor time, and on the clock in which it does not compute.
        longest_s (`float`): seconds on the clock altogether.
        memory_bytes (`int`): of address space.
        output_bytes (`int`): that it may print, and that each of its files may hold.
    """

    cpu_s: float
    wall_s: float
    longest_s: float
    memory_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Cell:
    """Where a worker runs.

    Attributes:
        folder (`Path`): its working directory, private and empty.
        rules (`int`, *optional*): of `landlock.ruleset`; `None` in the unsafe mode.
        instructions (`ctypes.Array`, *optional*): of `seccomp.compiled`; `None` in the unsafe mode.
    """

    folder: Path
    rules: int | None
    instructions: ctypes.Array | None


def lock_down(zygote: int, channel: int, cell: Cell, allowance: Allowance) -> None:
    """Refuses this process everything but its channel, its folder, and reading the standard library.

    Args:
        zygote (`int`): the process that forked this one.
        channel (`int`): the socket to the caller; it becomes `CHANNEL`.
        cell (`Cell`): where it runs.
        allowance (`Allowance`): what it may use.
    """
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != zygote:  # it ended before
        raise ProcessLookupError("the zygote is gone")
    os.chdir(cell.folder)
    kernel.forbid_inspection()
    kernel.forbid_new_privileges()
    if cell.rules is not None:
        landlock.restrict(cell.rules)
    _keep_only(channel)
    _limit(allowance)
    if cell.instructions is not None:
        seccomp.install(cell.instructions)


def _keep_only(channel: int) -> None:
    """Closes all descriptors but the channel, and sends the output to a file in memory."""
    output = os.memfd_create("output")
    os.dup2(output, 1)
    os.dup2(output, 2)
    if channel != CHANNEL:
        os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, 2**31 - 1)


def _limit(allowance: Allowance) -> None:
    """Sets the limits that the kernel enforces; the zygote enforces finer ones."""
    for kind, most in (
        (resource.RLIMIT_AS, allowance.memory_bytes),
        (resource.RLIMIT_CPU, math.ceil(allowance.cpu_s) + 1),
        (resource.RLIMIT_FSIZE, allowance.output_bytes),
        (resource.RLIMIT_NOFILE, _MOST_DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_STACK, _STACK_BYTES),
    ):
        hard = resource.getrlimit(kind)[1]
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (lower, lower))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
