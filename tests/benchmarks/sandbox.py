"""What a program in the sandbox costs: `python -m tests.benchmarks.sandbox`.

A call starts a locked-down worker, runs a program of one function there, calls the function, and ends the worker. Its
cost is shown for callers that hold little and much memory, and for several calling at once. A call may take 10 ms at
the median and 50 ms at the 95th percentile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from hf_rlae.errors import SandboxUnavailableError
from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.pool import Sandbox

CALLERS = (1, 2, 8)
PROGRAM = "def double(x):\n    return 2 * x"
_PAGE = 4096


def one_call(sandbox: Sandbox) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    with sandbox.session("program") as session:
        if session.ask({"sources": [PROGRAM]}) != {"loaded": ""}:
            raise SystemExit("the program did not run")
    return (time.perf_counter() - began) * 1000


def costs(sandbox: Sandbox, callers: int, calls: int) -> tuple[float, float]:
    """The median and the 95th percentile of the milliseconds of many calls, by several threads at once."""
    with ThreadPoolExecutor(callers) as threads:
        list(threads.map(lambda _: one_call(sandbox), range(4 * callers)))  # the zygotes start
        taken = sorted(threads.map(lambda _: one_call(sandbox), range(calls)))
    return taken[len(taken) // 2], taken[int(0.95 * len(taken))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="calls per cell")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="what the large caller holds")
    options = parser.parse_args(arguments)
    table = Table("backend", "caller holds", *(f"{callers} at once" for callers in CALLERS))
    for large in (False, True):
        ballast = bytearray(int(options.gigabytes * 2**30)) if large else bytearray()
        ballast[::_PAGE] = b"x" * len(range(0, len(ballast), _PAGE))  # memory that is never written is not held
        for backend in backends.BACKENDS:
            sandbox = Sandbox(backend=backend)
            try:
                cells = [costs(sandbox, callers, options.calls) for callers in CALLERS]
            except SandboxUnavailableError as error:
                table.add_row(backend, str(error))
                continue
            finally:
                sandbox.close()
            told = [f"{median:.1f} / {late:.1f} ms" for median, late in cells]
            table.add_row(backend, f"{options.gigabytes:g} GiB" if large else "little", *told)
    Console().print(table)
    Console().print("median / 95th percentile")


if __name__ == "__main__":
    main()
