"""What a program in the sandbox costs: `python -m tests.benchmarks.sandbox`.

A *worker* starts, runs a program of one function, and ends. A *grading* is a call of the reward `mbpp` with one program
and three tests: it takes two workers. Both are shown for callers that hold little and much memory, and for several
calling at once. A grading may take 10 ms at the median and 50 ms at the 95th percentile, on cores that are not busy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from hf_rlae.errors import SandboxUnavailableError
from hf_rlae.rewards import get_reward
from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.pool import Sandbox

CALLERS = (1, 2, 8)
PROGRAM = "def double(x):\n    return 2 * x"
TESTS = ["assert double(2) == 4", "assert double(3) == 6", "assert double(0) == 0"]
_PAGE_BYTES = 4096


def worker(sandbox: Sandbox) -> Callable[[], bool]:
    """Runs the program in a worker."""

    def run() -> bool:
        with sandbox.session("program") as session:
            return session.ask({"sources": [PROGRAM]}) == {"loaded": ""}

    return run


def grading(sandbox: Sandbox) -> Callable[[], bool]:
    """Grades the program."""
    reward = get_reward("mbpp", backend=sandbox.backend)
    return lambda: reward(prompts=[""], completions=[PROGRAM], test_list=[TESTS]) == [1.0]


def one_call(call: Callable[[], bool]) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    if not call():
        raise SystemExit("the program did not run")
    return (time.perf_counter() - began) * 1000


def costs(call: Callable[[], bool], callers: int, calls: int) -> tuple[float, float]:
    """The median and the 95th percentile of the milliseconds of many calls, by several threads at once."""
    with ThreadPoolExecutor(callers) as threads:
        list(threads.map(lambda _: one_call(call), range(4 * callers)))  # the zygotes start
        taken = sorted(threads.map(lambda _: one_call(call), range(calls)))
    return taken[len(taken) // 2], taken[int(0.95 * len(taken))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="calls per cell")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="what the large caller holds")
    options = parser.parse_args(arguments)
    table = Table("backend", "caller holds", "call", *(f"{callers} at once" for callers in CALLERS))
    for held in (0.0, options.gigabytes):
        ballast = bytearray(int(held * 2**30))
        ballast[::_PAGE_BYTES] = b"x" * len(range(0, len(ballast), _PAGE_BYTES))  # what is never written is not held
        for backend in backends.BACKENDS:
            sandbox = Sandbox(backend=backend)
            try:
                for kind in (worker, grading):
                    call = kind(sandbox)
                    found = [costs(call, callers, options.calls) for callers in CALLERS]
                    told = [f"{median:.1f} / {late:.1f} ms" for median, late in found]
                    table.add_row(backend, f"{held:g} GiB", kind.__name__, *told)
            except SandboxUnavailableError as error:
                table.add_row(backend, str(error))
            finally:
                sandbox.close()
    Console(width=100).print(table)
    Console().print("median / 95th percentile")


if __name__ == "__main__":
    main()
