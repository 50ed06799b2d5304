"""Reward functions with a time limit and checked outputs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import math
import numbers
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_rlae.checks import Bounds, check_number
from hf_rlae.errors import ConfigError, HfRlaeError
from hf_rlae.rewards import RewardError
from hf_rlae.rewards.contract import REWARD_LIMIT, is_async, name_of

_NUM_SHOWN = 3
_MOST_LISTED = 10
# an event loop that is not blocked answers within microseconds
_ANSWER_S = 0.25

Future = concurrent.futures.Future[Any] | asyncio.Future[Any]


class GuardedReward:
    """A reward function in TRL's form with a time limit. It returns one number per completion or raises an error that
    names it.

    The function may be sync, `async def`, or an object whose `__call__` is either. If it is async, so is its guard
    (`inspect.iscoroutinefunction(guarded.__call__)`, which is what TRL tests). With a time limit, a sync function runs
    in a worker thread. An async one runs in an event loop of its own, so it cannot block TRL's. A call that exceeds its
    limit is abandoned: training stops with an error, and the call may keep running in the background.

    A function that needs the main thread (it sets signals, as some timeouts do) needs `timeout_s=None`.

    Source: ours.

    Args:
        reward (callable): `reward(prompts, completions, completion_ids, **columns) -> list`.
        name (`str`, *optional*): its `__name__`, for logs and messages; the function's own by default.
        timeout_s (`float`, *optional*, defaults to 60): seconds per call; 0 or `None` for no limit and no thread.

    Raises:
        ConfigError: not a callable, a class or model instead of one, or a limit that is not a number of at least 0.

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
            raise ConfigError(f"the reward {reward.__name__} is a class; give an instance: {reward.__name__}(...)")
        if isinstance(reward, nn.Module) or not callable(reward):
            raise ConfigError(
                f"a reward function must be a callable, got {type(reward).__name__}; "
                f"hf_rlae.rewards.reward_model makes one of a classification model"
            )
        check_number("timeout_s", timeout_s, Bounds(0, is_optional=True))
        self.reward = reward
        self.__name__ = name or name_of(reward)
        self.timeout_s = float(timeout_s) if timeout_s else None

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> Any:
        """One reward per completion.

        Args:
            prompts (`Sequence`): N prompts.
            completions (`Sequence`): N completions.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): N lists of token ids.
            columns: all other arguments that TRL passes.

        Returns:
            `list[float | None]`: finite numbers; `None` where a completion could not be judged. If the function is
            async, a coroutine that returns this list.

        Raises:
            RewardError: the function raised, exceeded its time limit, or did not return N numbers up to `REWARD_LIMIT`.
        """
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        return self.finish(self.start(columns), columns, time.monotonic())

    def start(self, arguments: Mapping[str, Any]) -> concurrent.futures.Future[Any]:
        """Starts a call. Without a time limit, a sync function runs here, and its future is done."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # so that it cannot be cancelled: a thread cannot be stopped
        context, with_grad = contextvars.copy_context(), torch.is_grad_enabled()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            try:
                # the current device and the gradient mode belong to a thread
                if device is not None:
                    torch.cuda.set_device(device)
                with torch.set_grad_enabled(with_grad):
                    future.set_result(context.run(self.reward, **arguments))
            except BaseException as error:
                future.set_exception(error)

        if self.timeout_s is None:
            work()
        else:
            threading.Thread(target=work, name=f"reward {self.__name__}", daemon=True).start()
        return future

    def finish(
        self, future: concurrent.futures.Future[Any], arguments: Mapping[str, Any], start_s: float
    ) -> list[float | None]:
        """Waits for a call that `start` began and returns its rewards; see `__call__`.

        Args:
            future (`concurrent.futures.Future`): what `start` returned.
            arguments (`Mapping`): of the call.
            start_s (`float`): when the call began, in seconds of the monotonic clock.
        """
        left = None if self.timeout_s is None else max(0.0, self.timeout_s - (time.monotonic() - start_s))
        concurrent.futures.wait([future], left)
        return self._result(future, arguments)

    def _result(self, future: Future, arguments: Mapping[str, Any]) -> list[float | None]:
        if not future.done():
            if future.cancel():  # only the call of an async reward can be cancelled
                _leave_blocked_loop()
            raise self._time_limit_error(arguments["prompts"], arguments["completions"])
        error = future.exception()
        if isinstance(error, HfRlaeError):
            error.add_note(f"raised in the reward {self.__name__}")
        elif isinstance(error, Exception):
            needs_main_thread = self.timeout_s is not None and "main thread" in str(error)
            hint = "; with timeout_s=None it runs in the main thread" if needs_main_thread else ""
            raise RewardError(f"the reward {self.__name__} raised {type(error).__name__}: {error}{hint}") from error
        return self._checked(future.result(), arguments["completions"])

    def _time_limit_error(self, prompts: Sequence[Any], completions: Sequence[Any]) -> RewardError:
        pairs = list(zip(prompts, completions, strict=False))[:_NUM_SHOWN]
        samples = [f"{prompt!r:.60} -> {completion!r:.60}" for prompt, completion in pairs]
        more = ", ..." if len(completions) > _NUM_SHOWN else ""
        return RewardError(
            f"the reward {self.__name__} exceeded its time limit of {self.timeout_s:g} s while it judged "
            f"{len(completions)} samples ({', '.join(samples)}{more}); make it faster, or increase the limit "
            "(reward_timeout of a trainer)"
        )

    def _checked(self, output: Any, completions: Sequence[Any]) -> list[float | None]:
        given = f"the reward {self.__name__} returned"
        expected = f"expected a list of {len(completions)} numbers, one per completion, None if it could not be judged"
        if isinstance(output, torch.Tensor | np.ndarray):
            if output.ndim != 1:
                raise RewardError(f"{given} an array of shape {tuple(output.shape)}; {expected}")
            output = output.tolist()
        if not isinstance(output, Sequence) or isinstance(output, str | bytes):
            raise RewardError(f"{given} {_shown(output)}; {expected}")
        if len(output) != len(completions):
            raise RewardError(f"{given} {len(output)} rewards for {len(completions)} completions; {expected}")
        values = [_number(entry) for entry in output]
        bad = [at for at, value in enumerate(values) if value is None and output[at] is not None]
        if bad:
            places = ", ".join(map(str, bad[:_MOST_LISTED])) + (", ..." if len(bad) > _MOST_LISTED else "")
            raise RewardError(
                f"{given} {_shown(output[bad[0]])} for the completion {completions[bad[0]]!r:.80}; expected a finite "
                f"number, or None if it could not be judged. Samples: {places} of {len(output)}"
            )
        huge = next((at for at, value in enumerate(values) if value is not None and abs(value) > REWARD_LIMIT), None)
        if huge is not None:
            raise RewardError(
                f"{given} {_shown(output[huge])} for sample {huge}, the completion {completions[huge]!r:.80}; rewards "
                f"must be between -{REWARD_LIMIT:g} and {REWARD_LIMIT:g}, because training squares and sums them in "
                "float32; scale or clip them"
            )
        return values

    def __reduce__(self) -> Any:
        return GuardedReward, (self.reward, self.__name__, self.timeout_s)

    def __repr__(self) -> str:
        return f"<GuardedReward {self.__name__}>"


class GuardedAsyncReward(GuardedReward):
    """What `GuardedReward` makes of an async function; see there."""

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """See `GuardedReward.__call__`."""
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        future = asyncio.wrap_future(self.start(columns))
        await asyncio.wait([future], timeout=self.timeout_s)
        return self._result(future, columns)

    def start(self, arguments: Mapping[str, Any]) -> concurrent.futures.Future[Any]:
        """See `GuardedReward.start`; the call runs in the event loop of the rewards."""

        async def output() -> Any:
            try:
                return await self.reward(**arguments)
            except (KeyboardInterrupt, SystemExit) as error:
                # it would end the loop, and the future would never be done
                raise RewardError(f"the reward {self.__name__} raised {type(error).__name__}") from error

        return asyncio.run_coroutine_threadsafe(output(), _reward_loop())


@cache
def _reward_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all async rewards, in a daemon thread.

    Rewards share one loop because what they hold (the client of a server) may be bound to it.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def _leave_blocked_loop() -> None:
    """If a reward blocks the event loop, later calls get another one."""
    answer = threading.Event()
    _reward_loop().call_soon_threadsafe(answer.set)
    if not answer.wait(_ANSWER_S):
        _reward_loop.cache_clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    # threads do not survive a fork
    os.register_at_fork(after_in_child=_reward_loop.cache_clear)


def _number(entry: Any) -> float | None:
    """The value of a finite number of Python, numpy or torch; `None` for anything else."""
    if isinstance(entry, torch.Tensor | np.ndarray | np.generic):
        entry = entry.reshape(-1).tolist()
        entry = entry[0] if len(entry) == 1 else None
    if not isinstance(entry, numbers.Real):
        return None
    try:
        value = float(entry)  # True and False are numbers too: right and wrong
    except OverflowError:  # a whole number or fraction that no float holds
        return sys.float_info.max
    return value if math.isfinite(value) else None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4300 digits
        text = "a number"
    return f"{text:.80} ({type(value).__name__})"
