"""The side of a remote member that holds its model: it answers requests, in a process of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae import errors
from hf_rlae.errors import InternalError, MemberError, with_type
from hf_rlae.members.member import Member
from hf_rlae.members.paths import MakeRunner
from hf_rlae.members.probe import choose_runner
from hf_rlae.members.prompt_logps import prompt_logps
from hf_rlae.members.recurrence import Recurrence
from hf_rlae.members.remote.identity import model_hash, versions
from hf_rlae.members.remote.sessions import ColumnsSession, PathsSession
from hf_rlae.members.remote.wire import Outputs, Request, packed
from hf_rlae.members.separate_rows import new_shared_run


@dataclass(frozen=True)
class Hello:
    """What a worker says about its member.

    Attributes:
        versions (`dict[str, str]`), model_hash (`str`): see `identity`.
        commit (`str`, *optional*): the commit that it was loaded from.
        dtype (`str`), device (`str`), recurrence (`Recurrence`): see [`Member`].
        host (`str`), pid (`int`): the machine and the process.
    """

    versions: dict[str, str]
    model_hash: str
    commit: str | None
    dtype: str
    device: str
    recurrence: Recurrence
    host: str
    pid: int


class MemberHost:
    """A member and the sessions of those who run it.

    Args:
        member (`Member`): the member.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.sessions: dict[str, ColumnsSession | PathsSession] = {}
        self._runner: MakeRunner | None = None

    def hello(self) -> Hello:
        """See [`Hello`]."""
        member = self.member
        return Hello(
            versions(),
            model_hash(member.config, member.tokenizer),
            member.commit,
            str(member.dtype).removeprefix("torch."),
            str(member.device),
            member.recurrence,
            socket.gethostname(),
            os.getpid(),
        )

    @torch.inference_mode()
    def exchange(self, request: Request) -> Outputs | None:
        """Does what a request says; the outputs are those of what it reads."""
        for name in request.ended:
            self.sessions.pop(name, None)
        if request.opening is not None:
            how, *arguments = request.opening
            self.sessions[request.session] = getattr(self, how)(*arguments)
        session: Any = self.sessions.get(request.session)
        if session is None:
            raise MemberError(
                "the worker does not know this text: it was started again after the text had begun; generate it again"
            )
        for change, *arguments in request.changes:
            getattr(session, change)(*arguments)
        if request.reads is None:
            return None
        logits, hidden = session.read(request.reads)
        return Outputs(packed(logits), None if hidden is None else packed(hidden), session.forward_calls)

    def columns(self, *arguments: Any) -> ColumnsSession:
        """A new session of a member that shares its tokenizer; see `new_shared_run`."""
        return ColumnsSession(new_shared_run(self.member, *arguments))

    def paths(self, hidden_tokens: int) -> PathsSession:
        """A new session of a member whose tokenizer differs."""
        self.check_runner()
        return PathsSession(self._runner(self.member, hidden_tokens))  # type: ignore[misc]

    def twin(self, session: str, changes: Sequence[tuple[Any, ...]], how: str, *arguments: Any) -> Any:
        """A new session from another one, by its method `how`, after changes of that other one."""
        parent: Any = self.sessions.get(session)
        if parent is None:
            raise InternalError(f"session {session} has ended")
        for change, *given in changes:
            getattr(parent, change)(*given)
        return getattr(parent, how)(*arguments)

    def check_runner(self) -> None:
        """Finds the runner for texts in the member's own tokens (see `choose_runner`)."""
        if self._runner is None:
            self._runner = choose_runner(self.member)

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `prompt_logps`."""
        return prompt_logps(self.member, prompts)


class Worker:
    """What runs in the process of a remote member. Errors are answers, too: the driver makes its own from them."""

    def __init__(self) -> None:
        self._host: MemberHost | None = None

    def load(self, source: str, options: dict[str, Any]) -> tuple[Any, ...]:
        """Loads the member, unless it is there, and moves it to the accelerator that this process has been given."""

        def answer() -> Hello:
            if self._host is None:
                member = Member.load(source, **options)
                accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
                if accelerator is not None and not member.has_device_map:
                    member.wrapper.to(accelerator)
                self._host = MemberHost(member)
            return self._host.hello()

        return answered(answer)

    def ask(self, method: str, *arguments: Any) -> tuple[Any, ...]:
        """Calls a method of the `MemberHost`."""
        return answered(lambda: getattr(self._host, method)(*arguments))


def answered(answer: Callable[[], Any]) -> tuple[Any, ...]:
    """`("", result)`, or the name of the type of an error and its message."""
    try:
        return "", answer()
    except Exception as error:  # whatever a model raises is said to the driver, which knows what to do
        name = type(error).__name__
        return name, str(error) if hasattr(errors, name) else with_type(error, str(error))
