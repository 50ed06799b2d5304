from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.outcomes import Ended
from hf_rlae.rewards.sandbox.pool import Sandbox
from tests.unit.rewards.sandbox.attacks import ATTACKS, WAITING, Attack
from tests.unit.rewards.sandbox.world import (
    World,
    adopt_orphans,
    available,
    descendants,
    has_escaped,
    run,
    settles,
    world,
)

LIMITS = SandboxLimits(cpu_s=0.25, memory_mb=128, wall_s=60.0)
IMPATIENT = SandboxLimits(cpu_s=0.25, memory_mb=128, wall_s=0.5)
STILL_FINE = "import os\nassert os.listdir('.') == []\nopen('own', 'w').close()\nimport colorsys"


@pytest.fixture(scope="module", params=backends.BACKENDS)
def sandbox(request) -> Iterator[Sandbox]:
    made = available(request.param, LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def adopted_orphans() -> Iterator[None]:
    """Processes whose parent has ended become children of this one, so that none is overlooked."""
    if sys.platform == "linux":
        adopt_orphans(True)
    yield
    if sys.platform == "linux":
        adopt_orphans(False)


@pytest.fixture
def outside(tmp_path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def reaches_nothing(sandbox: Sandbox, outside: World, attack: Attack) -> None:
    before = descendants(os.getpid())
    answer = run(sandbox, outside.program(attack))
    assert not has_escaped(answer, outside)
    assert (answer.outcome if isinstance(answer, Ended) else answer) in attack.ends
    assert run(sandbox, STILL_FINE) == ""  # in an empty folder
    assert settles(lambda: descendants(os.getpid()) <= before)  # by the same zygote
    assert outside.touched() == []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.aim)
def test_a_hostile_program_reaches_nothing(sandbox, outside, attack):
    reaches_nothing(sandbox, outside, attack)


@pytest.mark.parametrize("attack", WAITING, ids=lambda attack: attack.aim)
def test_a_program_that_waits_is_ended(sandbox, outside, attack):
    impatient = Sandbox(IMPATIENT, backend=sandbox.backend)
    try:
        assert impatient.backend == sandbox.backend
        reaches_nothing(impatient, outside, attack)
    finally:
        impatient.close()


SEEN_FROM_OUTSIDE = [
    Attack("reads a file", "tell(open(SECRET_FILE).read())"),
    Attack("writes a file", "open(f'{OUTSIDE}/hf-rlae-escaped', 'w').close()"),
    Attack("changes rights", "import os\nos.chmod(SECRET_FILE, 0o777)"),
    Attack("connects", "import socket\nsocket.create_connection(('127.0.0.1', PORT))"),
    Attack("connects to an abstract name", "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)"),
    Attack("signals the caller", "import os, signal\nos.kill(CALLER, signal.SIGUSR1)"),
    Attack("kills a process", "import os, signal\nos.kill(VICTIM, signal.SIGKILL)"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
@pytest.mark.parametrize("attack", SEEN_FROM_OUTSIDE, ids=lambda attack: attack.aim)
def test_without_isolation_the_same_checks_see_what_a_program_reached(attack, outside, monkeypatch):
    monkeypatch.setenv(backends.UNSAFE_VARIABLE, "1")
    sandbox = Sandbox(LIMITS, unsafe=True)
    try:
        answer = run(sandbox, outside.program(attack))
        assert settles(lambda: has_escaped(answer, outside) or bool(outside.touched()))
    finally:
        sandbox.close()


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_without_isolation_a_process_that_outlives_its_program_is_seen(outside, monkeypatch):
    monkeypatch.setenv(backends.UNSAFE_VARIABLE, "1")
    sandbox = Sandbox(LIMITS, unsafe=True)
    try:
        assert sandbox.backend == "unsafe"
        before = descendants(os.getpid())
        run(sandbox, "import os, time\nif not os.fork():\n    time.sleep(3)\n    os._exit(0)")
        assert not settles(lambda: descendants(os.getpid()) <= before, 0.3)
    finally:
        sandbox.close()


def test_programs_that_are_not_hostile_find_what_they_need(sandbox):
    assert run(sandbox, "import asyncio\nasync def f():\n    await asyncio.sleep(0)\nasyncio.run(f())") == ""
    assert run(sandbox, "import tempfile\nwith tempfile.TemporaryFile() as file:\n    file.write(b'x')") == ""
    assert run(sandbox, "import bz2, ctypes, lzma, sqlite3, ssl, unittest, xml.etree.ElementTree, zlib") == ""
    assert run(sandbox, "import importlib\nimportlib.invalidate_caches()\nimport colorsys, xml.dom") == ""
    assert run(sandbox, "held = bytearray(64 * 2**20)\nprint('x' * 60_000)") == ""
    assert run(sandbox, "import time\nassert time.tzname[0] == 'UTC'\nassert [*{'a', 'b', 'c'}]") == ""
    assert run(sandbox, "import torch") == "ModuleNotFoundError"
