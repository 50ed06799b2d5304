"""The sandbox: workers for programs that a model wrote, from zygotes that it starts, replaces and ends."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from hf_rlae.errors import ConfigError, InternalError, SandboxUnavailableError, nearest
from hf_rlae.rewards.sandbox import backends
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.outcomes import Ended, Outcome, WorkerEndedError
from hf_rlae.rewards.sandbox.roles import ROLES
from hf_rlae.rewards.sandbox.session import Session
from hf_rlae.rewards.sandbox.zygote_process import ZygoteProcess

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_WINDOW = 100
_MOST_FAILURES = 1


_Begun = tuple[Session, ZygoteProcess]


class Failures:
    """Counts gradings that failed for reasons that are not the program's. Threads may share it."""

    def __init__(self) -> None:
        self._recent: deque[str] = deque(maxlen=_WINDOW)
        self._lock = threading.Lock()

    def note(self, reason: str) -> None:
        """Counts a grading.

        Args:
            reason (`str`): why it failed; empty if it did not.

        Raises:
            SandboxUnavailableError: more than 1% of the last 100 gradings failed.
        """
        with self._lock:
            self._recent.append(reason)
            failed = [each for each in self._recent if each]
        if reason and len(failed) > _MOST_FAILURES:
            raise SandboxUnavailableError(
                f"the sandbox failed in {len(failed)} of the last {len(self._recent)} gradings, for reasons that are "
                f"not the programs'; the last one: {reason}. Is the machine short of memory or processes?"
            )


class Sandbox:
    """Runs programs apart from this machine. Threads may share it; a copy in a forked process starts its own zygotes.

    Nothing starts before the first session. The zygotes end with this object, or with the Python process.

    Args:
        limits (`SandboxLimits`, *optional*): what each worker may use.
        backend (`str`, *optional*): "bubblewrap" or "landlock"; the first that works if `None`.
        unsafe (`bool`, defaults to `False`): runs programs with the limits but without isolation. The environment
            variable `HF_RLAE_UNSAFE_SANDBOX=1` has to confirm it.

    Raises:
        ConfigError: an argument is invalid, or `unsafe` is not confirmed.
    """

    def __init__(self, limits: SandboxLimits | None = None, backend: str | None = None, unsafe: bool = False) -> None:
        if backend is not None and backend not in backends.BACKENDS:
            raise ConfigError(f"Sandbox: backend {backend!r} does not exist; {nearest(backend, backends.BACKENDS)}")
        if unsafe and backend:
            raise ConfigError(f"Sandbox: pass backend={backend!r} or unsafe=True, not both")
        if unsafe and os.environ.get(backends.UNSAFE_VARIABLE) != "1":
            raise ConfigError(
                f"Sandbox: unsafe=True lets code of a model do what you may do; set {backends.UNSAFE_VARIABLE}=1 "
                "if you mean it"
            )
        self.limits = limits or SandboxLimits()
        self.failures = Failures()
        self._wanted = (backends.UNSAFE,) if unsafe else (backend,) if backend else backends.BACKENDS
        self._forget()
        _sandboxes.add(self)

    def _forget(self) -> None:
        """Starts without zygotes; in a forked process, those of its parent are not touched."""
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._zygotes: list[ZygoteProcess] = []
        self._backend: str | None = None
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self.num_places = max(4, 2 * self._cores)
        self._places = threading.BoundedSemaphore(self.num_places)

    @property
    def backend(self) -> str:
        """What isolates the workers: "bubblewrap", "landlock" or "unsafe". Starts the first zygote.

        Raises:
            SandboxUnavailableError: nothing does.
        """
        if not self._backend:
            self._release(self._reserve())
        return self._backend or ""

    @contextlib.contextmanager
    def place(self, *soon: str) -> Iterator[Callable[[str], Session]]:
        """Room for the workers of one grading, which end with this block. It waits while too many others run.

        Args:
            soon (`str`): roles that will be asked for; their workers begin to start now, at the same time.

        Yields:
            `Callable[[str], Session]`: starts a worker in a role, see `roles`, that is locked down and waits for its
            first message. It raises `SandboxUnavailableError` if nothing on this machine isolates it, and
            `WorkerEndedError` with `Outcome.UNAVAILABLE` if it does not start although something does.
            Inside the block, a thread must not ask for another place: threads may wait for one another.
        """
        with self._places, contextlib.ExitStack() as ends:
            begun: dict[str, _Begun] = {}
            for role in soon:
                with contextlib.suppress(OSError):  # it is tried again when it is asked for
                    begun[role] = self._begin(role, ends)
            yield lambda role: self._start(role, begun.pop(role, None), ends)

    @contextlib.contextmanager
    def session(self, role: str) -> Iterator[Session]:
        """A place with one worker."""
        with self.place() as start:
            yield start(role)

    def _begin(self, role: str, ends: contextlib.ExitStack) -> _Begun:
        """A worker that starts; `ends` ends it."""
        if role not in ROLES:
            raise InternalError(f"Sandbox: no worker has the role {role!r}; {nearest(role, ROLES)}")
        zygote = self._reserve()
        ends.callback(self._release, zygote)
        try:
            session = zygote.session(role, self.limits)
        except OSError:
            self._retire(zygote)
            raise
        ends.callback(session.close)
        return session, zygote

    def _start(self, role: str, begun: _Begun | None, ends: contextlib.ExitStack) -> Session:
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                session, zygote = begun or self._begin(role, ends)
                try:
                    return session.await_locked()
                except (WorkerEndedError, OSError):  # nothing has run, so that another one may be tried
                    self._retire(zygote)
                    raise
            except (WorkerEndedError, OSError, SandboxUnavailableError) as error:
                if not self._backend:
                    raise
                begun, reason = None, str(error)
        raise WorkerEndedError(Ended(Outcome.UNAVAILABLE, f"{self._backend}: workers do not start: {reason}"))

    def _retire(self, zygote: ZygoteProcess) -> None:
        """Gives a zygote no more sessions; it ends with its last one."""
        with self._lock:
            self._zygotes = [each for each in self._zygotes if each is not zygote]

    def _release(self, zygote: ZygoteProcess) -> None:
        with self._lock:
            zygote.sessions -= 1
            is_needed = zygote in self._zygotes or zygote.sessions > 0
        if not is_needed:
            zygote.stop()

    def _reserve(self) -> ZygoteProcess:
        """The zygote with the fewest sessions; one more is started while all work and there are fewer than cores."""
        if taken := self._take(is_shared=self._starting.locked()):
            return taken
        with self._starting:
            if taken := self._take(is_shared=False):  # another thread has started it
                return taken
            started = self._started()
            started.sessions = 1
            with self._lock:
                self._zygotes.append(started)
            return started

    def _take(self, is_shared: bool) -> ZygoteProcess | None:
        with self._lock:
            least = min(self._zygotes, key=lambda each: each.sessions, default=None)
            if least and (is_shared or not least.sessions or len(self._zygotes) >= self._cores):
                least.sessions += 1
                return least
        return None

    def _started(self) -> ZygoteProcess:
        if self._backend:  # one that works was found: another one would be a silent change
            return ZygoteProcess(self._backend)
        failed = []
        for backend in self._wanted:
            try:
                zygote = _probed(backend)
            except SandboxUnavailableError as error:
                failed.append(str(error))
            else:
                self._backend = backend
                if failed:
                    logger.warning("The sandbox isolates programs by %s alone: %s.", backend, "; ".join(failed))
                return zygote
        raise SandboxUnavailableError(f"nothing on this machine isolates programs of a model: {'; '.join(failed)}")

    def close(self) -> None:
        """Ends the zygotes. The next session starts new ones."""
        with self._lock:
            zygotes, self._zygotes = self._zygotes, []
        for zygote in zygotes:
            zygote.stop()


def _probed(backend: str) -> ZygoteProcess:
    """A zygote of a backend, after one of its workers has tried what it must not be able to do."""
    if reason := backends.missing(backend):
        raise SandboxUnavailableError(f"{backend}: {reason}")
    zygote = ZygoteProcess(backend)
    try:
        with contextlib.closing(zygote.session("probe", SandboxLimits())) as session:
            found = session.await_locked().ask({})
        holes = [name for name, works in found["forbidden"].items() if works]
        holes += [f"no {name}" for name, works in found["allowed"].items() if not works]
        if holes and backend != backends.UNSAFE:
            raise SandboxUnavailableError(f"{backend}: a worker has {', '.join(holes)}")
    except (WorkerEndedError, OSError) as error:
        zygote.stop()
        raise SandboxUnavailableError(f"{backend}: {error}") from None
    except BaseException:
        zygote.stop()
        raise
    return zygote


_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_sandboxes):
        sandbox._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
