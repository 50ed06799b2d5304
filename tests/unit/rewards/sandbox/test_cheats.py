"""No program that cheats is paid. The same battery sees what other judges pay."""

from __future__ import annotations

import dataclasses

import pytest

from hf_rlae.errors import SandboxUnavailableError
from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.judge import Verdict, judge, judge_all
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.pool import Sandbox
from tests.support.sandboxes import some_sandbox
from tests.support.tiers import show_figure
from tests.unit.rewards.sandbox.cheats import CHEATS, NEEDS_PROCESSES, job

JOBS = {name: job(*case) for name, case in CHEATS.items()}
LIMITS = SandboxLimits(cpu_s=0.5, memory_mb=128, wall_s=10.0)


def paid(verdicts):
    """The names of the cheats that a judge paid."""
    return {name for name, verdict in zip(JOBS, verdicts, strict=True) if verdict.passed}


@pytest.mark.slow
@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_no_cheat_is_paid(backend):
    some_sandbox()  # or the test is skipped
    sandbox = Sandbox(LIMITS, backend=backend)
    try:
        assert sandbox.backend == backend
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    verdicts = judge_all(sandbox, list(JOBS.values()))
    sandbox.close()
    show_figure(f"{backend}: {len(paid(verdicts))} of {len(JOBS)} cheats are paid")
    assert paid(verdicts) == set()
    assert [name for name, verdict in zip(JOBS, verdicts, strict=True) if verdict.passed is None] == []


def beside(case):
    """A judge that runs the tests in the process and the namespace of the program, as most do."""
    namespace: dict = {"__name__": "program"}
    try:
        for text in (*case.programs, *case.statements):
            exec(text, namespace)
    except BaseException:
        return Verdict(False)
    return Verdict(True)


def credulous(sandbox, case):
    """A judge that takes the program's word for the verdict."""
    with sandbox.session("program") as program:
        program.send({"sources": list(case.programs)})
        message = program.receive()
        return Verdict(message.get("verdict", [False])[0])


def test_a_judge_beside_the_program_pays_cheats():
    """The battery can fail."""
    found = paid(Verdict(False) if name in NEEDS_PROCESSES else beside(case) for name, case in JOBS.items())
    show_figure(f"a judge beside the program pays {len(found)} of {len(JOBS) - len(NEEDS_PROCESSES)} cheats")
    assert {"an object that equals everything", "the end of an iterator"} <= found


def test_a_judge_that_believes_the_program_pays_cheats():
    name = "a verdict in the channel"
    assert credulous(some_sandbox(), JOBS[name]).passed is True
    assert judge(some_sandbox().place, JOBS[name]).passed is False


def test_the_same_programs_pass_where_they_do_what_is_asked():
    """The battery does not pass because nothing is paid: with the value that a cheat returns, its test passes."""
    name = "a trace of all calls"
    case = dataclasses.replace(JOBS[name], statements=("assert f(1) == 7",))
    assert judge(some_sandbox().place, case) == Verdict(True)
