"""The split judge: a program and its tests run in two workers, and this process carries plain data between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from hf_rlae.rewards.sandbox.channel import ChannelError
from hf_rlae.rewards.sandbox.outcomes import WorkerEndedError
from hf_rlae.rewards.sandbox.pool import Sandbox
from hf_rlae.rewards.sandbox.session import Session
from hf_rlae.rewards.sandbox.used_names import UsedNames


@dataclass(frozen=True)
class Job:
    """A program and its tests.

    Args:
        programs (`tuple[str, ...]`): texts, of which the first that is Python is the program.
        statements (`tuple[str, ...]`): the tests, in order. The program passes if none of them raises.
        names (`UsedNames`): which names of the tests are the program's.
        preludes (`tuple[str, ...]`): texts, of which the first that is Python runs before the tests.
    """

    programs: tuple[str, ...]
    statements: tuple[str, ...]
    names: UsedNames
    preludes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What is known of a program.

    Attributes:
        passed (`bool`, *optional*): `None` if it could not be judged, and the program is not to blame.
        reason (`str`): for people; empty if it passed.
    """

    passed: bool | None
    reason: str = ""


Start = Callable[[str], Session]
"""Starts a worker in a role: `"program"` or `"tests"`."""
Place = Callable[[], AbstractContextManager[Start]]
"""Room for the workers of one program, which end with its block."""


class _DecidedError(Exception):
    """The verdict is known before the tests end."""

    def __init__(self, passed: bool | None, reason: str) -> None:
        super().__init__(reason)
        self.verdict = Verdict(passed, reason)


def judge(place: Place, job: Job) -> Verdict:
    """Judges one program.

    Args:
        place (callable): room for workers, such as `Sandbox.place`.
        job (`Job`): the program and its tests.

    Returns:
        `Verdict`: `passed` is `True` only if the worker with the tests says so after the last of them.
    """
    tested = {
        "preludes": ["\n".join(job.names.imports), *job.preludes],
        "modules": list(job.names.modules),
        "names": list(job.names.program),
        "statements": list(job.statements),
    }
    try:
        with place() as start:
            program = start("program")
            error = _answer(program, {"sources": list(job.programs)}, "loaded")
            if error:
                return Verdict(False, f"the program raised {error:.100}")
            tests = start("tests")
            _send_tests(tests, tested)
            while "request" in (message := tests.receive()):
                tests.send({"reply": _answer(program, message, "reply")})
            return Verdict(*message["verdict"])
    except _DecidedError as decided:
        return decided.verdict
    except WorkerEndedError as error:
        return Verdict(*_reason(error, "the tests"))


def judge_all(sandbox: Sandbox, jobs: Sequence[Job]) -> list[Verdict]:
    """Judges programs at the same time; equal jobs once, and those that could not be judged once more.

    Args:
        sandbox (`Sandbox`): where they run.
        jobs (`Sequence[Job]`): programs and their tests.

    Returns:
        `list[Verdict]`: in the order of the jobs.

    Raises:
        SandboxUnavailableError: there is no sandbox, or too many of the last programs could not be judged.
    """
    different = list(dict.fromkeys(jobs))
    with ThreadPoolExecutor(max(1, min(sandbox.num_places, len(different))), "judge") as threads:
        found = dict(zip(different, threads.map(partial(_judged, sandbox), different), strict=True))
    return [found[job] for job in jobs]


def _judged(sandbox: Sandbox, job: Job) -> Verdict:
    place = partial(sandbox.place, "program", "tests")
    verdict = judge(place, job)
    if verdict.passed is None:
        verdict = judge(place, job)
    sandbox.failures.note(verdict.reason if verdict.passed is None else "")
    return verdict


def _send_tests(tests: Session, message: dict[str, Any]) -> None:
    try:
        tests.send(message)
    except ChannelError as error:
        raise _DecidedError(None, f"the tests are too long: {error}") from None


def _answer(program: Session, message: dict[str, Any], key: str) -> str:
    """What the program's worker says to a message. Nothing of it is trusted."""
    try:
        program.send(message)
        reply = program.receive()
    except WorkerEndedError as error:
        raise _DecidedError(*_reason(error, "the program")) from None
    except ChannelError as error:
        raise _DecidedError(False, f"the program is too long: {error}") from None
    found = reply.get(key)
    # other characters would be longer when they are sent on
    if len(reply) != 1 or not isinstance(found, str) or not found.isascii():
        raise _DecidedError(False, "the program's worker sent something else than an answer")
    return found


def _reason(error: WorkerEndedError, of: str) -> tuple[bool | None, str]:
    ended = error.ended
    return None if ended.outcome.is_infrastructure else False, f"{of}: {ended.outcome.value} {ended.detail}".strip()
