"""A member whose model and caches are in another process, on this machine or another one."""

from __future__ import annotations

import itertools
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from hf_rlae import errors
from hf_rlae.errors import ConfigError, HfRlaeError, MemberError, MemberLostError
from hf_rlae.extras import missing_packages
from hf_rlae.hub_revisions import commit_of
from hf_rlae.members.lazy_member import declared_parts
from hf_rlae.members.member import Member
from hf_rlae.members.recurrence import Recurrence
from hf_rlae.members.remote.host import Hello
from hf_rlae.members.remote.identity import model_hash, versions
from hf_rlae.members.remote.wire import Outputs

logger = logging.getLogger(__name__)

TIMEOUT_S = 120.0
"""How long a step of a remote member may take. Source: ours."""
START_TIMEOUT_S = 1800.0
"""How long a worker may take to start and to load its model. Source: ours."""


class Link(Protocol):
    """Calls the `Worker` of a member, wherever it is."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the worker, without waiting; calls are answered in order."""

    def wait(self, call: Any, timeout: float) -> tuple[Any, ...]:
        """The answer to a call.

        Raises:
            TimeoutError: it does not come in time.
            ConnectionError: the worker is dead.
        """

    def close(self) -> None:
        """Ends the worker."""


class Waiting:
    """A call under way.

    Args:
        member (`RemoteMember`), call: the member, and what its link returned.
        timeout (`float`): seconds from now in which the answer has to come.
    """

    def __init__(self, member: RemoteMember, call: Any, timeout: float) -> None:
        self.member = member
        self._call = call
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout

    def result(self) -> Any:
        """Waits for the answer.

        Raises:
            MemberLostError: the worker is dead, or late.
            HfRlaeError: what the worker has raised; `MemberError` for errors of other packages.
        """
        member = self.member
        try:
            name, answer = member.link.wait(self._call, max(self._deadline - time.monotonic(), 0.0))
        except TimeoutError as error:
            hint = "" if member.worker else "; perhaps no machine has the resources that it asks for"
            raise member.lose(f"has not answered within {self._timeout:g} s{hint}") from error
        except ConnectionError as error:
            raise member.lose(f"has ended ({error})") from error
        if not name:
            return answer
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, HfRlaeError):
            raise kind(answer)
        raise MemberError(f"member {member.name} failed in its worker: {answer}")


class RemoteMember(Member):
    """A member whose model and caches are in a worker: a process of its own, on this machine or another one.

    Here are only its config, its generation config and its tokenizer. Ids go to the worker, and one vector of logits
    per wanted column comes back, in the dtype of the model's head. Make it with `RemoteMember.load`, or with
    `EnsembleForCausalLM.from_members(..., placement="ray")`.

    Source: ours.

    Args:
        skeleton, tokenizer: see `load_skeleton` and `load_tokenizer`.
        link (`Link`): calls the worker.
        options (`dict`): what the worker gives to [`Member.load`], with `source`.
        timeout (`float`): seconds that a step may take.
        start_timeout (`float`): seconds that the worker may take to start and to load its model.
        about: see [`Member`].

    Attributes:
        worker (`Hello` or `None`): what the worker has said about its member; set by `connect`.
        lost (`str` or `None`): why the worker cannot be used any more.
        bytes_sent (`int`), bytes_received (`int`): of ids and masks, and of logits and hidden states.
    """

    is_remote = True

    def __init__(
        self,
        skeleton: Any,
        tokenizer: Any,
        *,
        make_link: Callable[[str], Link],
        options: dict[str, Any],
        timeout: float = TIMEOUT_S,
        start_timeout: float = START_TIMEOUT_S,
        **about: Any,
    ) -> None:
        self.worker: Hello | None = None
        self.lost: str | None = None
        self.bytes_sent = self.bytes_received = 0
        self.ended: deque[str] = deque()
        self._options = options
        self._timeout, self._start_timeout = timeout, start_timeout
        self._make_link = make_link
        self._moved: torch.device | None = None
        self._sessions = itertools.count()
        self._id = uuid.uuid4().hex
        adapter_name = about.pop("adapter_name", None)  # the skeleton is that of the base model
        super().__init__(skeleton, tokenizer, **about)
        self.adapter_name = adapter_name
        self._start()

    def _start(self) -> None:
        self.link = self._make_link(str(self.name))
        options = dict(self._options)
        self._loading: Waiting | None = self._called(
            "load", options.pop("source"), options, timeout=self._start_timeout
        )

    @classmethod
    def load(  # type: ignore[override]  # the arguments are those of `Member.load`
        cls,
        source: str,
        *,
        resources: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT_S,
        start_timeout: float = START_TIMEOUT_S,
        link: Callable[[str], Link] | None = None,
        sees: bool | None = None,
        **options: Any,
    ) -> RemoteMember:
        """Starts a Ray actor that loads the model, and reads config and tokenizer here; nothing is waited for.

        Args:
            source (`str`): a Hub id, or a folder that the worker's machine has under the same path.
            resources (`dict`, *optional*): the options of the Ray actor, such as `{"num_gpus": 1}`: what
                `ray.remote(...).options(...)` takes.
            timeout (`float`, defaults to 120): seconds that a step of the member may take. A worker that is later is
                given up.
            start_timeout (`float`, defaults to 1800): seconds that the worker may take to start and to load the model.
            link (`Callable`, *optional*): makes the `Link` of the member with this name, instead of a Ray actor.
            sees, options: as in [`Member.load`]; a member that sees images cannot be remote.

        Raises:
            ConfigError: Ray is not installed, or `resources` are not options of an actor.
            MemberError, TokenizerError: see `Member.load`. What is wrong with the weights is found by `connect`.
        """
        for name, value in (("timeout", timeout), ("start_timeout", start_timeout)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"{name} must be a number of seconds above 0, got {value!r}")
        if link is None:
            missing = missing_packages("a remote member", ["ray"], "ray")
            if missing:
                raise ConfigError(missing)
            from hf_rlae.members.remote.ray_link import ray_link  # Ray takes seconds to import, and is an extra

            link = ray_link(resources or {}, {**options, "source": source})
        skeleton, tokenizer, whole, about = declared_parts(source, sees=sees, **options)
        if whole["sees"]:
            raise ConfigError(
                f"member {source} sees images, which remote members cannot; give sees=False to use it for text alone, "
                "or leave it on this machine"
            )
        base_revision = about.pop("base_revision")
        place = os.path.abspath(source) if os.path.isdir(source) else source
        member = cls(
            skeleton,
            tokenizer,
            make_link=link,
            options={**whole, "source": place},
            timeout=timeout,
            start_timeout=start_timeout,
            source=source,
            name=source,
            **about,
        )
        member.base_commit = commit_of(base_revision)
        return member

    def connect(self) -> None:
        """Waits until the worker has loaded its model, and checks that it is the one that is declared here.

        Raises:
            MemberError: the model cannot be loaded there, or is another one; the worker has another version of
                hf_rlae, or is lost.
        """
        if self._loading is None:
            return
        loading, self._loading = self._loading, None
        try:
            hello: Hello = loading.result()
            self._check(hello)
        except BaseException:
            self.close()
            raise
        self.worker, self.recurrence = hello, hello.recurrence
        logger.info("member %s runs on %s (%s), process %d", self.name, hello.host, hello.device, hello.pid)

    def _check(self, hello: Hello) -> None:
        mine, its = versions(), hello.versions
        if mine["hf_rlae"] != its["hf_rlae"]:
            raise MemberError(
                f"member {self.name}: its worker on {hello.host} has hf_rlae {its['hf_rlae']}, and this process has "
                f"{mine['hf_rlae']}; install the same version on all machines"
            )
        if mine != its:
            logger.warning(
                "member %s: its worker on %s has %s, and this process has %s; logits may differ by rounding",
                self.name, hello.host, its, mine,
            )  # fmt: skip
        if hello.model_hash != model_hash(self.config, self.tokenizer):
            raise MemberError(
                f"member {self.name}: the worker on {hello.host} has loaded a model with another config or vocabulary "
                "than this process has read; give a Hub id with its revision, or the same folder on all machines"
            )
        if self.commit and hello.commit and self.commit != hello.commit:
            raise MemberError(
                f"member {self.name}: the worker on {hello.host} has commit {hello.commit}, and this process has read "
                f"{self.commit}; give its revision"
            )

    def restart(self) -> None:
        """Ends the worker and starts a new one; texts that were begun cannot be continued."""
        self.link.close()
        self.lost = None
        self._start()
        self.connect()

    def close(self) -> None:
        """Ends the worker and frees its memory. It also ends with this process."""
        self.lost = self.lost or "was closed"
        self.link.close()

    def lose(self, why: str) -> MemberLostError:
        """Gives the worker up; returns the error that says why."""
        if self.lost is None:
            self.lost = why
            logger.warning("the worker of member %s %s", self.name, why)
        return self._lost_error()

    def _lost_error(self) -> MemberLostError:
        return MemberLostError(
            f"the worker of member {self.name} {self.lost}; call `restart()` of the member to go on with it, or set "
            "on_lost_member='drop' to go on without it"
        )

    def call(self, method: str, *arguments: Any) -> Waiting:
        """Calls a method of the `MemberHost`, without waiting for it."""
        self.connect()
        return self._called("ask", method, *arguments, timeout=self._timeout)

    def _called(self, *call: Any, timeout: float) -> Waiting:
        if self.lost is not None:
            raise self._lost_error()
        return Waiting(self, self.link.call(*call), timeout)

    def new_session(self) -> str:
        """A name for a session that no other process uses."""
        return f"{self._id}-{next(self._sessions)}"

    def take_ended(self) -> tuple[str, ...]:
        """The sessions that have ended since the last message; they are taken off the list."""
        taken = []
        while self.ended:
            taken.append(self.ended.popleft())
        return tuple(taken)

    def count_received(self, outputs: Outputs) -> None:
        """Adds the size of outputs to `bytes_received`."""
        hidden = 0 if outputs.hidden is None else outputs.hidden.data.nbytes
        self.bytes_received += outputs.logits.data.nbytes + hidden

    def check_runner(self) -> None:
        """See `choose_runner`, in the worker."""
        self.call("check_runner").result()

    def score_prompts(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `prompt_logps`, in the worker."""
        return self.call("score", [list(prompt) for prompt in prompts]).result()

    def move(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Notes where outputs are put; the model stays where it is."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if moved.dtype != self.dtype:
            raise ConfigError(
                f"the dtype of remote member {self.name} cannot be changed; give dtype={str(moved.dtype)[6:]!r} to "
                "`from_members`"
            )
        self._moved = moved.device

    @property
    def device(self) -> torch.device:
        """The device on which outputs are put."""
        return self._moved or torch.get_default_device()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's parameters, in the worker."""
        return super().dtype if self.worker is None else getattr(torch, self.worker.dtype)

    @property
    def has_device_map(self) -> bool:
        """`False`: outputs can be put on any device."""
        return False

    def _check_parameters(self) -> None:
        """Nothing: the worker checks them."""

    def _find_recurrence(self) -> Recurrence:
        """Not known yet; the worker tells it."""
        return Recurrence()
