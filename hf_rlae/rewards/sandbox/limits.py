"""What one worker may use."""

from __future__ import annotations

from dataclasses import dataclass

from hf_rlae.errors import ConfigError

_MOST_TIMES = 10


@dataclass(frozen=True)
class SandboxLimits:
    """What a program may use before it is stopped. A worker is one process with one thread.

    Args:
        cpu_s (`float`, defaults to 10.0): seconds of processor time.
        memory_mb (`int`, defaults to 512): MiB of memory, beyond what the interpreter uses itself.
        output_kb (`int`, defaults to 64): KiB that it prints, and KiB of each file in its folder.
        wall_s (`float`, defaults to 60.0): seconds on the clock, for programs that sleep. Seconds in which the program
            computes, or would if the machine were not busy, do not count until ten times as many are over.
    """

    cpu_s: float = 10.0
    memory_mb: int = 512
    output_kb: int = 64
    wall_s: float = 60.0

    @property
    def longest_s(self) -> float:
        """Seconds on the clock after which a worker is ended, whatever it did."""
        return _MOST_TIMES * self.wall_s

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ConfigError(f"SandboxLimits: {name} is {value!r}; pass a finite number above 0")
        for name in ("memory_mb", "output_kb"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"SandboxLimits: {name} is {getattr(self, name)!r}; pass an `int`")
