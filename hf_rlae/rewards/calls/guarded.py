"""Reward functions that cannot hang, and whose output is checked before anything is computed from it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import math
import numbers
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from hf_rlae.errors import ConfigError, HfRlaeError
from hf_rlae.rewards import RewardError
from hf_rlae.rewards.contract import is_async, name_of

_NUM_SHOWN = 3
# an event loop that nobody blocks answers within microseconds
_ANSWER_S = 0.25


class GuardedReward:
    """A reward function in TRL's form that cannot hang, and whose output is N numbers or an error that names it.

    The function may be sync, `async def`, or an object whose `__call__` is either; where it is async, so is this
    (`inspect.iscoroutinefunction(guarded.__call__)`, by which TRL decides). With a time limit, a sync function runs in
    a worker thread; an async one runs in an event loop apart from TRL's. So neither can block training for ever; one
    that passed its limit is abandoned where it is.

    A function that needs the main thread (it sets signals, as some timeouts do) wants `timeout_s=None`.

    Source: ours.

    Args:
        reward (callable): `reward(prompts, completions, completion_ids, **columns) -> list`.
        name (`str`, *optional*): its `__name__`, for logs and messages; the function's own if not given.
        timeout_s (`float`, *optional*, defaults to 60): seconds for one call; 0 or `None` for no limit and no thread.

    Raises:
        ConfigError: not a callable, a class or model in place of one, or a limit that is not a number of at least 0.

    Example:

    >>> def brevity(completions, **columns):
    ...     return [1.0 if len(completion) < 9 else None for completion in completions]
    >>> GuardedReward(brevity)(prompts=["a", "b"], completions=["short", "far too long"])
    [1.0, None]
    """

    def __new__(cls, reward: Any, name: str | None = None, timeout_s: float | None = 60.0) -> GuardedReward:
        return super().__new__(GuardedAsyncReward if is_async(reward) else GuardedReward)

    def __init__(self, reward: Any, name: str | None = None, timeout_s: float | None = 60.0) -> None:
        if inspect.isclass(reward):
            raise ConfigError(f"the reward {reward.__name__} is a class; give an object of it: {reward.__name__}(...)")
        if isinstance(reward, nn.Module) or not callable(reward):
            raise ConfigError(
                f"a reward function must be a callable, got {type(reward).__name__}; "
                f"hf_rlae.rewards.reward_model makes one of a classification model"
            )
        is_number = isinstance(timeout_s, numbers.Real) and not isinstance(timeout_s, bool)
        if timeout_s is not None and not (is_number and 0 <= timeout_s < math.inf):
            raise ConfigError(f"timeout_s must be a number of seconds of at least 0, or None, got {timeout_s!r}")
        self.reward = reward
        self.__name__ = name or name_of(reward)
        self.timeout_s = float(timeout_s) if timeout_s else None

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> Any:
        """N rewards.

        Args:
            prompts (`Sequence`): N prompts.
            completions (`Sequence`): N completions.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): N lists of token ids.
            columns: whatever else TRL gives.

        Returns:
            `list[float | None]`: finite numbers; `None` where a completion could not be judged. Where the function is
            async, a coroutine that gives this.

        Raises:
            RewardError: the function raised, passed its time limit, or gave something else than N numbers.
        """
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        try:
            output = self.reward(**arguments) if self.timeout_s is None else self._in_thread(arguments)
        except _TimeLimit:
            raise self._time_limit(prompts, completions) from None
        except Exception as error:
            self._fail(error)
        return self._checked(output, completions)

    def _in_thread(self, arguments: dict[str, Any]) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        context = contextvars.copy_context()
        with_grad = torch.is_grad_enabled()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            try:
                # both belong to a thread
                if device is not None:
                    torch.cuda.set_device(device)
                with torch.set_grad_enabled(with_grad):
                    done.set_result(context.run(self.reward, **arguments))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, name=f"reward {self.__name__}", daemon=True).start()
        concurrent.futures.wait([done], self.timeout_s)
        if not done.done():
            raise _TimeLimit
        return done.result()

    def _time_limit(self, prompts: Sequence[Any], completions: Sequence[Any]) -> RewardError:
        samples = [
            f"{prompt!r:.60} -> {completion!r:.60}"
            for prompt, completion in list(zip(prompts, completions, strict=False))[:_NUM_SHOWN]
        ]
        more = ", ..." if len(completions) > _NUM_SHOWN else ""
        return RewardError(
            f"the reward {self.__name__} passed its time limit of {self.timeout_s:g} s while it judged "
            f"{len(completions)} samples ({', '.join(samples)}{more}); mend it, or give it more time"
        )

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, HfRlaeError):
            error.add_note(f"raised in the reward {self.__name__}")
            raise error
        hint = ""
        if self.timeout_s is not None and "main thread" in str(error):
            hint = "; with timeout_s=None it runs in the main thread"
        raise RewardError(f"the reward {self.__name__} raised {type(error).__name__}: {error}{hint}") from error

    def _checked(self, output: Any, completions: Sequence[Any]) -> list[float | None]:
        if isinstance(output, torch.Tensor | np.ndarray):
            if output.ndim != 1:
                raise RewardError(
                    f"the reward {self.__name__} returned an array of shape {tuple(output.shape)}; "
                    f"expected ({len(completions)},), one number a completion"
                )
            output = output.tolist()
        if not isinstance(output, Sequence) or isinstance(output, str | bytes):
            raise RewardError(
                f"the reward {self.__name__} returned {_shown(output)}; expected a list of "
                f"{len(completions)} numbers, one a completion"
            )
        if len(output) != len(completions):
            raise RewardError(
                f"the reward {self.__name__} returned {len(output)} rewards for {len(completions)} completions; "
                f"expected one a completion, in their order, and None for one that could not be judged"
            )
        values = [_number(entry) for entry in output]
        bad = [at for at, value in enumerate(values) if value is None and output[at] is not None]
        if bad:
            places = ", ".join(str(at) for at in bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise RewardError(
                f"the reward {self.__name__} returned {_shown(output[bad[0]])} for the completion "
                f"{completions[bad[0]]!r:.80}; expected a finite number, or None for one that could not be judged. "
                f"Samples: {places} of {len(output)}"
            )
        return values

    def __reduce__(self) -> Any:
        return GuardedReward, (self.reward, self.__name__, self.timeout_s)

    def __repr__(self) -> str:
        return f"<GuardedReward {self.__name__}>"


class GuardedAsyncReward(GuardedReward):
    """What `GuardedReward` gives for an async function; see there."""

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """See `GuardedReward.__call__`."""
        running = self.start(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        try:
            outcome = await asyncio.wait_for(asyncio.wrap_future(running.future), self.timeout_s)
        except TimeoutError:
            raise self._late(running) from None
        return self._finished(outcome, running)

    def start(self, **arguments: Any) -> RunningReward:
        """Begins a call in the event loop of the rewards; `finish` waits for it.

        Args:
            arguments: those of `GuardedReward.__call__`.
        """

        async def outcome() -> tuple[Any, BaseException | None]:
            try:
                return await self.reward(**arguments), None
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                # one that is not an `Exception` would end the loop, and nobody would ever be told
                return None, error

        return RunningReward(asyncio.run_coroutine_threadsafe(outcome(), _loops.current()), arguments, time.monotonic())

    def finish(self, running: RunningReward) -> list[float | None]:
        """The rewards of a call that `start` began; see `GuardedReward.__call__`."""
        left = None
        if self.timeout_s is not None:
            left = max(0.0, self.timeout_s - (time.monotonic() - running.since))
        try:
            outcome = running.future.result(left)
        except TimeoutError:
            raise self._late(running) from None
        return self._finished(outcome, running)

    def _late(self, running: RunningReward) -> RewardError:
        running.future.cancel()
        _loops.leave_if_blocked()
        return self._time_limit(running.arguments["prompts"], running.arguments["completions"])

    def _finished(self, outcome: tuple[Any, BaseException | None], running: RunningReward) -> list[float | None]:
        output, error = outcome
        if isinstance(error, Exception):
            self._fail(error)
        if error is not None:
            raise RewardError(f"the reward {self.__name__} raised {type(error).__name__}") from error
        return self._checked(output, running.arguments["completions"])


@dataclass(frozen=True)
class RunningReward:
    """A call of an async reward that has begun.

    Args:
        future (`concurrent.futures.Future`): of the output and what was raised.
        arguments (`dict`): of the call.
        since (`float`): when it began, on the monotonic clock, in seconds.
    """

    future: concurrent.futures.Future[Any]
    arguments: dict[str, Any]
    since: float


class _TimeLimit(Exception):
    """Another class than the `TimeoutError` that a reward itself may raise."""


class _Loops:
    """The event loop in which async rewards run, in a thread that ends with the process.

    All share one, because what they hold (a client of a server) may be bound to it. One that a reward has blocked is
    left behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def current(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # threads do not survive a fork
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True).start()
            return self._loop

    def leave_if_blocked(self) -> None:
        with self._lock:
            if self._loop is None:
                return
            answer = threading.Event()
            self._loop.call_soon_threadsafe(answer.set)
            if not answer.wait(_ANSWER_S):
                self._loop = None


_loops = _Loops()


def _number(entry: Any) -> float | None:
    """The value of a finite number of Python, numpy or torch; `None` for anything else."""
    if isinstance(entry, torch.Tensor | np.ndarray | np.generic):
        count = entry.numel() if isinstance(entry, torch.Tensor) else entry.size
        entry = entry.item() if count == 1 else None
    # True and False are numbers too: right and wrong
    if not isinstance(entry, numbers.Real) or not math.isfinite(entry):
        return None
    return float(entry)


def _shown(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
