"""A guarded reward returns N numbers within its time limit, or raises an error that names it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import multiprocessing
import pickle
import signal
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import get_callable_name, is_async_callable

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, RewardUnavailableError, get_reward
from hf_rlae.rewards.calls.guarded import GuardedReward

PROMPTS, COMPLETIONS = ["p0", "p1", "p2"], ["c0", "c1", "c2"]


def called(reward, **columns):
    """The output of a sync or async reward."""
    output = reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1], [2], [3]], **columns)
    return asyncio.run(output) if inspect.iscoroutine(output) else output


def both(function, **options):
    """The same function, sync with and without a thread, and async."""

    async def later(**arguments):
        await asyncio.sleep(0)
        return function(**arguments)

    later.__name__ = function.__name__
    return [
        GuardedReward(function, **options),
        GuardedReward(function, **{**options, "timeout_s": None}),
        GuardedReward(later, **options),
    ]


def lengths(completions, **columns):
    return [float(len(completion)) for completion in completions]


async def async_lengths(completions, **columns):
    return lengths(completions)


class Length:
    def __call__(self, completions, **columns):
        return lengths(completions)


class AsyncLength:
    async def __call__(self, completions, **columns):
        return lengths(completions)


@pytest.mark.parametrize(
    ("reward", "name", "is_async"),
    [
        (lengths, "lengths", False),
        (async_lengths, "async_lengths", True),
        (Length(), "Length", False),
        (AsyncLength(), "AsyncLength", True),
        (functools.partial(lengths, a=1), "lengths", False),
        (functools.partial(async_lengths, a=1), "async_lengths", True),
        (get_reward("number"), "number_reward", False),
    ],
)
def test_trl_sees_what_it_would_see_without(reward, name, is_async):
    """A guard has the kind and name of its reward, and can be pickled."""
    guarded = GuardedReward(reward)
    assert is_async_callable(guarded) is is_async_callable(reward) is is_async
    assert get_callable_name(guarded) == guarded.__name__ == name
    assert called(pickle.loads(pickle.dumps(guarded)), answer=["1"] * 3) == called(guarded, answer=["1"] * 3)
    assert GuardedReward(reward, "other").__name__ == "other"


number = st.floats(-(2.0**49), 2.0**49, width=32)


@given(st.lists(st.one_of(number, st.none(), st.booleans(), st.integers(-5, 5)), min_size=3, max_size=3))
def test_good_outputs(values):
    """Lists and tuples of all kinds of numbers become floats; `None` stays."""
    expected = [None if value is None else float(value) for value in values]
    kinds = [float, np.float32, np.float64, torch.tensor, np.array, lambda value: torch.tensor([float(value)])]
    for kind in kinds:
        given = [None if value is None else kind(value) for value in values]
        for output in (given, tuple(given)):
            found = GuardedReward(lambda output=output, **_: output, timeout_s=0)
            found = called(found)
            assert found == expected
            assert all(value is None or type(value) is float for value in found)


def test_good_arrays():
    for output in (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), np.array([1, 2, 3]), torch.tensor([1, 2, 3])):
        for reward in both(lambda output=output, **_: output):
            assert called(reward) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (1.0, r" 1\.0 \(float\); expected a list of 3"),
        (None, r" None"),
        ("abc", r" 'abc' \(str\)"),
        ({"c0": 1.0, "c1": 1.0, "c2": 1.0}, r"\(dict\)"),
        ((value for value in (1.0, 2.0, 3.0)), r"\(generator\)"),
        ([1.0, 2.0], " 2 rewards for 3 completions"),
        ([1.0] * 4, " 4 rewards for 3 completions"),
        ([], " 0 rewards"),
        (torch.ones(3, 1), r"shape \(3, 1\)"),
        (np.float64(2.0), r"2\.0"),
        (torch.tensor(2.0), r"shape \(\)"),
        ([1.0, "2", 3.0], r" '2' \(str\) for the completion 'c1'.* Samples: 1 of 3"),
        ([1.0, math.nan, math.inf], r" nan \(float\) for the completion 'c1'.* Samples: 1, 2 of 3"),
        (torch.tensor([1.0, 2.0, -math.inf]), r" -inf .*'c2'"),
        ([torch.ones(2)] * 3, r"'c0'.* Samples: 0, 1, 2 of 3"),
        ([1.0, [2.0], 3.0], r" \[2\.0\] \(list\)"),
        ([1.0, 2 + 1j, 3.0], r"\(complex\)"),
        (np.array([1.0, None, "x"], dtype=object), r" 'x' .*'c2'"),
        ([1.0, 1e308, 3.0], r" 1e\+308 \(float\) for sample 1, .*'c1'; rewards must be between -1e\+15 and 1e\+15"),
        ([1.0, 2.0, -1e39], r" -1e\+39 .* sample 2"),  # infinite in float32
        (torch.tensor([1e37, 0.0, 0.0]), r"e\+36 .* sample 0"),  # finite in float32, its square is not
        ([1.1e15, 1.0, 2.0], r"1100000000000000\.0 .* sample 0"),  # just beyond
        ([1.0, 10**400, 2.0], r" 1000.* \(int\) for sample 1"),  # no float holds it
        ([1.0, Fraction(10**400), 2.0], r"\(Fraction\) for sample 1"),
        ([10**5000, 1.0, 2.0], r"\(int\) for sample 0"),  # Python does not print it
    ],
)
def test_bad_outputs(output, told):
    """The message gives the function, its output, what was expected, and where."""

    def bad_reward(**columns):
        return output

    for reward in both(bad_reward):
        with pytest.raises(RewardError, match=f"(?s)^the reward bad_reward returned.*{told}"):
            called(reward)


def test_the_largest_rewards():
    assert called(GuardedReward(lambda **_: [1e15, -1e15, 1e-300], timeout_s=0)) == [1e15, -1e15, 1e-300]


def test_exceptions():
    """Errors are named and chained, typed errors stay, and a reward's own `TimeoutError` is not the limit."""

    def broken(**columns):
        return {}["key"]

    def late(**columns):
        raise TimeoutError("the server does not answer")

    def typed(**columns):
        raise RewardUnavailableError("no sandbox")

    for reward in both(broken):
        with pytest.raises(RewardError, match="the reward broken raised KeyError: 'key'") as error:
            called(reward)
        assert isinstance(error.value.__cause__, KeyError)
    for reward in both(late):
        with pytest.raises(RewardError, match="the reward late raised TimeoutError: the server does not answer"):
            called(reward)
    for reward in both(typed):
        with pytest.raises(RewardUnavailableError, match="no sandbox") as error:
            called(reward)
        assert error.value.__notes__ == ["raised in the reward typed"]


def test_what_is_no_exception_passes_through():
    """For a sync reward. An async one cannot pass it through the event loop, so a named error is raised."""

    def stopping(**columns):
        raise KeyboardInterrupt

    in_thread, plain, later = both(stopping)
    for reward in (in_thread, plain):
        with pytest.raises(KeyboardInterrupt):
            called(reward)
    with pytest.raises(RewardError, match="stopping raised KeyboardInterrupt"):
        called(later)
    assert called(GuardedReward(async_lengths)) == [2.0, 2.0, 2.0]


def test_an_interrupt_while_it_waits():
    """Ctrl-C ends the wait before the limit does."""

    def endless(**columns):
        time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            called(GuardedReward(endless))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 3


def sleeping(**columns):
    time.sleep(3)


async def waiting(**columns):
    await asyncio.sleep(3)


async def blocking(**columns):
    time.sleep(3)


@pytest.mark.parametrize("reward", [sleeping, waiting, blocking])
def test_time_limits(reward):
    """The message gives function, limit and samples; an async reward that blocks its loop does not block training."""
    start = time.monotonic()
    with pytest.raises(RewardError) as error:
        called(GuardedReward(reward, timeout_s=0.15))
    assert time.monotonic() - start < 1
    told = f"the reward {reward.__name__} exceeded its time limit of 0.15 s while it judged 3 samples ('p0' -> 'c0', "
    assert told in str(error.value)
    # and another reward can be asked at once
    assert called(GuardedReward(async_lengths, timeout_s=1)) == [2.0, 2.0, 2.0]
    assert called(GuardedReward(lengths, timeout_s=1)) == [2.0, 2.0, 2.0]


def test_threads():
    """A worker thread with a limit, the caller's thread without; the gradient mode is the caller's."""
    seen = []

    def watching(completions, **columns):
        seen.append((threading.current_thread(), torch.is_grad_enabled()))
        return [0.0] * 3

    here = threading.current_thread()
    for limit in (5, 0, None):
        with torch.no_grad():
            called(GuardedReward(watching, timeout_s=limit))
        called(GuardedReward(watching, timeout_s=limit))
    assert [grad for _, grad in seen] == [False, True] * 3
    assert [thread is here for thread, _ in seen] == [False] * 2 + [True] * 4
    assert all(thread.daemon for thread, _ in seen[:2])


def test_rewards_that_need_the_main_thread():
    """The hint says how, and works."""

    def alarmed(completions, **columns):
        former = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, former)
        return [1.0] * 3

    with pytest.raises(RewardError, match=r"alarmed raised ValueError.*with timeout_s=None it runs in the main thread"):
        called(GuardedReward(alarmed))
    assert called(GuardedReward(alarmed, timeout_s=None)) == [1.0] * 3


def test_arguments_go_through():
    """All arguments reach the reward unchanged."""
    seen = []

    def watching(prompts, completions, completion_ids, **columns):
        seen.append((prompts, completions, completion_ids, columns))
        return [0] * 3

    for reward in both(watching):
        called(reward, answer=["a", "b", "c"], trainer_state=7)
    assert seen == [(PROMPTS, COMPLETIONS, [[1], [2], [3]], {"answer": ["a", "b", "c"], "trainer_state": 7})] * 3


@pytest.mark.parametrize("reward", [None, 3, Length, torch.nn.Linear(1, 1)])
def test_rewards_that_are_refused(reward):
    with pytest.raises(ConfigError, match="reward"):
        GuardedReward(reward)


@pytest.mark.parametrize("limit", [-1, math.nan, math.inf, "60", True])
def test_limits_that_are_refused(limit):
    with pytest.raises(ConfigError, match="timeout_s"):
        GuardedReward(lengths, timeout_s=limit)


async def loop_of(**columns):
    return [float(id(asyncio.get_running_loop()))] * 3


@pytest.mark.parametrize(("late", "is_kept"), [(waiting, True), (sleeping, True), (blocking, False)])
def test_async_rewards_share_a_loop_unless_it_is_blocked(late, is_kept):
    """A client that is bound to the loop survives a time limit; a blocked loop is replaced."""
    guard = GuardedReward(loop_of)
    before = called(guard)
    assert called(guard) == before
    with pytest.raises(RewardError, match="exceeded its time limit"):
        called(GuardedReward(late, timeout_s=0.1))
    assert (called(guard) == before) is is_kept


def test_after_a_fork():
    """The child has no thread for the loop of its parent, and starts another one."""
    expected = called(GuardedReward(async_lengths))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(called, (GuardedReward(async_lengths, timeout_s=5),)).get(timeout=20) == expected
