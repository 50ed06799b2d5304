"""Many calls of the sandbox: nothing is left behind, and no call is answered wrongly whatever is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.outcomes import Ended, Outcome
from hf_rlae.rewards.sandbox.pool import Sandbox
from tests.benchmarks.sandbox import costs, grading, one_call
from tests.support.tiers import draws, show_figure
from tests.unit.rewards.sandbox.attacks import ATTACKS
from tests.unit.rewards.sandbox.world import World, available, descendants, has_escaped, run, settles, world

pytestmark = pytest.mark.slow

LIMITS = SandboxLimits(cpu_s=0.1, memory_mb=128)
HOSTILE = 0.3
MOST_DESCRIPTORS, MOST_BYTES = 2, 20 * 2**20
THREADS = 4
MOST_MEDIAN_MS, MOST_LATE_MS = 10.0, 50.0


@pytest.fixture(params=backends.BACKENDS)
def sandbox(request) -> Iterator[Sandbox]:
    made = available(request.param, LIMITS)
    yield made
    made.close()


@pytest.fixture
def outside(tmp_path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def call(sandbox: Sandbox, outside: World, number: int) -> str:
    """One call, hostile or not; what is wrong with its answer."""
    chosen = random.Random(number)
    if chosen.random() < HOSTILE:
        attack = chosen.choice(ATTACKS)
        answer = run(sandbox, outside.program(attack))
        ended = answer.outcome if isinstance(answer, Ended) else answer
        # these limits are lower than those for which the table was made, so that time may end any of them
        is_right = ended in (*attack.ends, Outcome.TIMEOUT) and not has_escaped(answer, outside)
        return "" if is_right or _is_nobodys_fault(answer) else f"{attack.aim}: {answer}"
    answer = run(sandbox, f"raise type('answer{number}', (Exception,), {{}})")
    return "" if answer == f"answer{number}" or _is_nobodys_fault(answer) else f"{number}: {answer}"


def _is_nobodys_fault(answer: str | Ended) -> bool:
    return isinstance(answer, Ended) and answer.outcome.is_infrastructure


def calls(sandbox: Sandbox, outside: World, numbers: range) -> list[str]:
    wrong: list[str] = []
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(numbers.start, numbers.stop, 100):  # the futures of all calls would fill the memory
            some = range(start, min(start + 100, numbers.stop))
            wrong += filter(None, threads.map(lambda number: call(sandbox, outside, number), some))
    return wrong


def held(pid: int) -> tuple[int, int]:
    """The descriptors and the bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return len(os.listdir(f"/proc/{pid}/fd")), pages * 4096


def test_many_calls_leave_nothing_behind(sandbox, outside):
    count = draws(300, 10_000)
    assert calls(sandbox, outside, range(-200, 0)) == []  # so that all zygotes, places and caches are there
    processes = descendants(os.getpid())
    before = {pid: held(pid) for pid in (os.getpid(), *(each.pid for each in sandbox._zygotes))}
    assert calls(sandbox, outside, range(count)) == []
    assert settles(lambda: descendants(os.getpid()) <= processes)
    descriptors, memory = 0, 0
    for pid, (open_before, bytes_before) in before.items():
        open_after, bytes_after = held(pid)
        descriptors, memory = max(descriptors, open_after - open_before), memory + bytes_after - bytes_before
    assert descriptors <= MOST_DESCRIPTORS
    assert memory <= MOST_BYTES
    assert outside.touched() == []
    show_figure(
        f"{sandbox.backend}: {count} calls, {HOSTILE:.0%} hostile, by {THREADS} threads: no process left, "
        f"{descriptors} descriptors, {memory / 2**20:.1f} MiB"
    )


def test_calls_are_answered_right_while_zygotes_and_workers_are_killed(sandbox, outside):
    count = draws(200, 2_000)
    is_over = threading.Event()
    killed = 0

    def kill_some() -> None:
        nonlocal killed
        while not is_over.wait(0.2):
            found = [pid for each in sandbox._zygotes for pid in (each.pid, *descendants(each.pid))]
            if found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(found), signal.SIGKILL)
                    killed += 1

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        wrong = calls(sandbox, outside, range(count))
    finally:
        is_over.set()
        killer.join()
    assert wrong == []
    assert killed
    assert run(sandbox, "raise KeyError") == "KeyError"
    show_figure(
        f"{sandbox.backend}: {count} calls while {killed} zygotes and workers were killed: none answered wrongly"
    )


def test_a_grading_costs_a_large_caller_no_more(sandbox):
    call = grading(sandbox)
    costs(call, 1, 10)
    little = sorted(one_call(call) for _ in range(draws(40, 300)))
    size = draws(2**29, 2**32)
    ballast = bytearray(size)
    ballast[::4096] = b"x" * len(range(0, size, 4096))  # what is never written is not held
    large = sorted(one_call(call) for _ in range(draws(40, 300)))
    del ballast
    assert large[0] <= 3 * little[0]  # the fastest ones, because other work on the machine slows any call down
    if os.getloadavg()[0] < len(os.sched_getaffinity(0)):
        assert statistics.median(large) <= MOST_MEDIAN_MS
        assert large[int(0.95 * len(large))] <= MOST_LATE_MS
    told = [f"{statistics.median(taken):.1f} / {taken[int(0.95 * len(taken))]:.1f} ms" for taken in (little, large)]
    show_figure(
        f"{sandbox.backend}: median / 95th percentile {told[0]}, from a caller with {size / 2**30:g} GiB {told[1]}"
    )
