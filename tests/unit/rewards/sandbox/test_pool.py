from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_rlae.errors import ConfigError, InternalError, SandboxUnavailableError
from hf_rlae.rewards.sandbox import backends, pool
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.outcomes import Outcome, WorkerEndedError
from hf_rlae.rewards.sandbox.pool import Failures, Sandbox
from tests.unit.rewards.sandbox.world import available, descendants, run, settles

LIMITS = SandboxLimits(cpu_s=5.0, memory_mb=128)
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(params=backends.BACKENDS)
def sandbox(request) -> Iterator[Sandbox]:
    made = available(request.param, LIMITS)
    yield made
    made.close()


@pytest.fixture
def locked() -> Iterator[Sandbox]:
    made = available("landlock", LIMITS)
    yield made
    made.close()


def zygotes(sandbox: Sandbox) -> list[int]:
    return [each.pid for each in sandbox._zygotes]


def echo(sandbox: Sandbox, text: str) -> object:
    """What a program says that raises an error of that name."""
    return run(sandbox, f"raise type({text!r}, (Exception,), {{}})")


def test_a_killed_zygote_is_replaced_and_no_call_notices(sandbox):
    assert echo(sandbox, "one") == "one"
    (first,) = zygotes(sandbox)
    os.kill(first, signal.SIGKILL)
    assert echo(sandbox, "two") == "two"
    assert first not in zygotes(sandbox)


def test_the_session_of_a_killed_zygote_is_nobodys_fault(sandbox):
    with sandbox.session("program") as session:
        os.kill(zygotes(sandbox)[0], signal.SIGKILL)
        with pytest.raises(WorkerEndedError) as caught:
            session.ask({"sources": ["while True:\n    pass"]})
    assert caught.value.ended.outcome == Outcome.UNAVAILABLE
    assert caught.value.ended.outcome.is_infrastructure
    assert echo(sandbox, "next") == "next"


def test_a_worker_that_others_kill_is_nobodys_fault(locked):
    before = descendants(os.getpid())
    with locked.session("program") as session:
        (worker,) = descendants(os.getpid()) - before
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerEndedError) as caught:
            session.ask({"sources": [""]})
    assert caught.value.ended.outcome == Outcome.KILLED
    assert caught.value.ended.outcome.is_infrastructure


def test_workers_end_with_their_zygote(locked):
    assert locked.backend
    with locked.session("program") as session:
        session.send({"sources": ["while True:\n    pass"]})
        (zygote,) = zygotes(locked)
        worker = only_worker(zygote)
        os.kill(zygote, signal.SIGKILL)
        assert settles(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker))


def only_worker(zygote: int) -> int:
    """The worker of a zygote, when the one that probed its backend has ended."""
    assert settles(lambda: len(descendants(zygote)) == 1)
    (worker,) = descendants(zygote)
    return worker


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_bubblewrap_may_be_killed_without_its_zygote(monkeypatch):
    sandbox = available("bubblewrap", LIMITS)
    started = sandbox._zygotes[0]
    assert started.pid != started._process.pid
    started._process.kill()
    assert echo(sandbox, "still") == "still"
    sandbox.close()
    assert settles(lambda: not Path(f"/proc/{started.pid}").exists() or _is_zombie(started.pid))


def test_a_zygote_outlives_the_thread_that_started_it(sandbox):
    sandbox.close()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(echo, sandbox, "a").result() == "a"
    time.sleep(0.1)
    started = zygotes(sandbox)
    assert echo(sandbox, "b") == "b"
    assert zygotes(sandbox) == started


def test_threads_share_a_sandbox(sandbox):
    with ThreadPoolExecutor(8) as threads:
        texts = [f"answer{number}" for number in range(48)]
        assert list(threads.map(lambda text: echo(sandbox, text), texts)) == texts
    assert len(zygotes(sandbox)) <= len(os.sched_getaffinity(0))


def test_a_place_holds_several_workers(locked):
    with locked.place() as start:
        sessions = [start("program") for _ in range(3)]
        answers = [
            each.ask({"sources": [f"raise type('n{n}', (Exception,), {{}})"]}) for n, each in enumerate(sessions)
        ]
    assert answers == [{"loaded": f"n{n}"} for n in range(3)]
    assert all(each.close().outcome == Outcome.CLOSED for each in sessions)


def test_what_a_caller_does_not_need_any_more_is_ended(locked):
    before = descendants(os.getpid())
    with locked.session("program") as session:
        session.send({"sources": ["import time\nwhile True:\n    time.sleep(1)"]})
        assert descendants(os.getpid()) - before
    assert settles(lambda: descendants(os.getpid()) <= before, 3.0)


def test_messages_may_be_longer_than_the_buffers_of_sockets(locked):
    with locked.session("program") as session:
        assert session.ask({"sources": ["#" * 1_500_000]}) == {"loaded": ""}


def test_a_worker_that_does_not_read_holds_nobody_up(locked):
    hasty = Sandbox(SandboxLimits(cpu_s=0.2), backend=locked.backend)
    with hasty.session("program") as session:
        session.send({"sources": ["while True:\n    pass"]})
        with pytest.raises(WorkerEndedError) as caught:
            session.send({"request": "A" * 1_500_000})
    assert caught.value.ended.outcome == Outcome.TIMEOUT
    hasty.close()


def test_a_forked_process_has_its_own_zygotes(sandbox):
    assert echo(sandbox, "parent") == "parent"
    started = zygotes(sandbox)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            assert not sandbox._zygotes
            assert echo(sandbox, "child") == "child"
            assert zygotes(sandbox) != started
            sandbox.close()
            os.write(writing, b"right")
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 10) == b"right"
    os.waitpid(pid, 0)
    os.close(reading)
    assert echo(sandbox, "again") == "again"
    assert zygotes(sandbox) == started


def test_several_processes_call_at_once(locked):
    assert echo(locked, "parent") == "parent"
    pids = []
    for number in range(3):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with ThreadPoolExecutor(2) as threads:
                    texts = [f"p{number}n{call}" for call in range(8)]
                    code = int(list(threads.map(lambda text: echo(locked, text), texts)) != texts)
                locked.close()
            finally:
                os._exit(code)
        pids.append(pid)
    texts = [f"parent{call}" for call in range(8)]
    assert [echo(locked, text) for text in texts] == texts
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]


def test_a_process_that_is_forked_during_a_session_leaves_it_alone(locked):
    with locked.session("program") as session:
        pid = os.fork()
        if not pid:
            session.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert session.ask({"sources": ["raise KeyError"]}) == {"loaded": "KeyError"}


def test_the_end_leaves_no_process_descriptor_or_folder(sandbox):
    sandbox.close()
    before, open_before = descendants(os.getpid()), len(os.listdir("/proc/self/fd"))
    assert echo(sandbox, "once") == "once"
    scratch = Path(sandbox._zygotes[0].scratch)
    assert scratch.is_dir()
    sandbox.close()
    assert descendants(os.getpid()) == before
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert not scratch.exists()


PARENT = """
import os, signal, sys, time
from hf_rlae.rewards.sandbox.pool import Sandbox
sandbox = Sandbox(backend=sys.argv[1])
with sandbox.session("program") as session:
    session.send({{"sources": ["while True:\\n    pass"]}})
    print(sandbox._zygotes[0].pid, sandbox._zygotes[0].scratch, flush=True)
    {inside}
    time.sleep(60)
"""


@pytest.mark.parametrize("inside", ["pass", "os.fork() or time.sleep(5)"], ids=["alone", "with a forked process"])
def test_nothing_is_left_when_the_caller_is_killed(sandbox, inside):
    script = PARENT.format(inside=inside)
    caller = subprocess.Popen(
        [sys.executable, "-c", script, sandbox.backend],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    zygote, scratch = caller.stdout.readline().split()
    assert descendants(caller.pid) >= {int(zygote)}
    worker = only_worker(int(zygote))
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    gone = [Path(f"/proc/{pid}") for pid in (zygote, worker)]
    assert settles(lambda: all(not path.exists() or _is_zombie(int(path.name)) for path in gone), 4.0)
    if sandbox.backend == "landlock":
        assert settles(lambda: not Path(scratch).exists())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(caller.pid, signal.SIGKILL)
    caller.stdout.close()


def test_callers_may_ignore_the_ends_of_children_and_have_no_rights_to_spare():
    script = """
import signal, sys
from hf_rlae.rewards.sandbox.pool import Sandbox
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sandbox = Sandbox()
with sandbox.session("program") as session:
    print(session.ask({"sources": ["raise KeyError"]}))
sandbox.close()
"""
    available("landlock", LIMITS).close()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.stderr) == ("{'loaded': 'KeyError'}\n", "")


def no_landlock() -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


UNAVAILABLE = {
    # what is missing: what is replaced, and what the message says
    "another processor": (
        "platform.machine",
        lambda: "aarch64",
        "bubblewrap: it needs x86-64, not aarch64; landlock: it",
    ),
    "another system": ("sys.platform", "darwin", "bubblewrap: it needs Linux, not darwin; landlock: it needs Linux"),
    "landlock": (
        "landlock.version",
        no_landlock,
        "bubblewrap: the kernel has no landlock: Function not implemented; landlock: the kernel has no landlock: Func",
    ),
    "a process": (
        "command",
        lambda backend, *_: [sys.executable, "-c", f"raise OSError('no {backend} here')"],
        "bubblewrap: its process does not start: OSError: no bubblewrap here; landlock: its process does not st",
    ),
    "isolation that holds": (
        "command",
        lambda _, *arguments: COMMAND(backends.UNSAFE, *arguments),
        "bubblewrap: a worker has reading files, listing folders, ",
    ),
}
COMMAND = backends.command


@pytest.mark.parametrize(("name", "value", "said"), UNAVAILABLE.values(), ids=UNAVAILABLE)
def test_without_isolation_nothing_runs(monkeypatch, name, value, said):
    monkeypatch.setattr(backends.shutil, "which", lambda name: f"/usr/bin/{name}")
    owner, _, attribute = name.rpartition(".")
    monkeypatch.setattr(getattr(backends, owner) if owner else backends, attribute, value)
    sandbox = Sandbox(LIMITS)
    with pytest.raises(SandboxUnavailableError) as caught, sandbox.session("program"):
        pass
    assert said in str(caught.value)
    assert not sandbox._zygotes


def test_what_is_not_installed_is_named(monkeypatch, caplog):
    available("landlock", LIMITS).close()
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailableError, match="bubblewrap: bwrap is not installed; try `apt-get install"):
        _ = Sandbox(LIMITS, backend="bubblewrap").backend
    sandbox = Sandbox(LIMITS)
    assert sandbox.backend == "landlock"
    sandbox.close()
    assert "isolates programs by landlock alone: bubblewrap: bwrap is not installed" in caplog.text


def test_a_backend_that_was_found_is_not_changed_for_a_weaker_one(monkeypatch):
    sandbox = available("bubblewrap", LIMITS)
    sandbox._wanted = backends.BACKENDS
    sandbox.close()
    monkeypatch.setattr(backends, "command", lambda *_: [sys.executable, "-c", "raise OSError('gone')"])
    with pytest.raises(WorkerEndedError) as caught, sandbox.session("program"):
        pass
    assert caught.value.ended.outcome == Outcome.UNAVAILABLE
    assert "bubblewrap: its process does not start: OSError: gone" in caught.value.ended.detail


REFUSED = [
    ({"backend": "docker"}, "backend 'docker' does not exist"),
    ({"unsafe": True}, "set HF_RLAE_UNSAFE_SANDBOX=1"),
    ({"unsafe": True, "backend": "landlock"}, "not both"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_arguments_that_make_no_sense_are_refused(monkeypatch, arguments, said):
    monkeypatch.delenv(backends.UNSAFE_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=said):
        Sandbox(**arguments)


@pytest.mark.parametrize("arguments", [{"cpu_s": 0}, {"wall_s": float("inf")}, {"memory_mb": 1.5}, {"output_kb": True}])
def test_limits_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        SandboxLimits(**arguments)


def test_more_than_one_failure_in_a_hundred_stops():
    failures = Failures()
    failures.note("the machine is full")
    for _ in range(99):
        failures.note("")
    failures.note("")  # the first one is forgotten
    failures.note("the machine is full again")
    with pytest.raises(SandboxUnavailableError, match=r"2 of the last 100 gradings.*the last one: and again"):
        failures.note("and again")


def test_a_role_that_does_not_exist_is_a_defect(locked):
    with pytest.raises(InternalError, match="did you mean 'program'"), locked.session("programm"):
        pass


def test_a_place_is_waited_for(locked, monkeypatch):
    locked._places = threading.BoundedSemaphore(1)
    with locked.session("program"), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(echo, locked, "later")
        time.sleep(0.2)
        assert not waiting.done()
        locked._places.release()
        assert waiting.result() == "later"
        locked._places.acquire()


def test_zygotes_are_started_only_when_all_are_busy(locked, monkeypatch):
    locked._cores = 2
    for _ in range(3):
        assert echo(locked, "a") == "a"
    assert len(zygotes(locked)) == 1
    with locked.place() as start:
        for _ in range(4):
            start("program")
        assert [each.sessions for each in locked._zygotes] == [2, 2]
    assert [each.sessions for each in locked._zygotes] == [0, 0]


def test_programs_find_nothing_of_pool_in_their_worker(locked):
    source = (
        "import sys\nassert 'hf_rlae.rewards.sandbox.pool' not in sys.modules\nassert 'subprocess' not in sys.modules"
    )
    assert run(locked, source) == ""
    assert pool.Sandbox is Sandbox


def test_workers_that_will_be_asked_for_begin_at_once(locked):
    with locked.place("program", "tests") as start:
        assert sum(each.sessions for each in locked._zygotes) == 2
        assert start("program").ask({"sources": ["raise KeyError"]}) == {"loaded": "KeyError"}
        assert sum(each.sessions for each in locked._zygotes) == 2
    assert sum(each.sessions for each in locked._zygotes) == 0


def test_a_worker_that_began_and_is_lost_before_it_is_asked_for_is_started_again(locked):
    assert locked.backend
    with locked.place("program") as start:
        os.kill(zygotes(locked)[0], signal.SIGKILL)
        assert start("program").ask({"sources": ["raise KeyError"]}) == {"loaded": "KeyError"}
