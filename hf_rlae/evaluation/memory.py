"""Peak memory of a part of a program."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_RESET_PEAK = "5"
"""What resets the peak of the resident memory of a process; see `clear_refs` in proc(5)."""


def reset_peak_memory() -> None:
    """Starts a new peak, on GPUs, and on Linux for the memory of this process."""
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # another system: `peak_memory_bytes` then has no number
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def peak_memory_bytes() -> int | None:
    """The peak since `reset_peak_memory`.

    Returns:
        `int`: bytes that torch had allocated on all GPUs, or without GPUs the resident memory of this process; `None`
        where the system does not tell it.

    Example:

    >>> reset_peak_memory()
    >>> peak = peak_memory_bytes()
    >>> peak is None or peak > 0
    True
    """
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
