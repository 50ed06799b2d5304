"""math-verify in its own processes: verdicts, time limits in parallel, killed processes, a missing package."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, RewardUnavailableError, get_reward
from hf_rlae.rewards.math_pool import most_judges
from hf_rlae.rewards.math_verify_rule import MathVerifyReward

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed (hf_rlae[math])"
)
BOMB = r"$\boxed{9^{9^{9^{9}}}}$"
"""Sympy does not finish on this in any reasonable time."""
BOMB_ANSWER = "3^{3^{3^3}}"


@pytest.fixture(scope="module")
def reward():
    reward = MathVerifyReward(timeout_s=1.5)
    if importlib.util.find_spec("math_verify") is not None:
        assert reward([""], ["$1$"], answer=["1"]) == [1.0]  # starts the processes
    return reward


def timed(call, *args, **kwargs):
    start = time.monotonic()
    return call(*args, **kwargs), time.monotonic() - start


BARE = [
    ("x^2+1", "1+x^2", 1.0),
    (r"\sqrt{2}", r"\sqrt{2}", 1.0),
    (r"2\sqrt{2}", r"\sqrt{8}", 1.0),
    ("(1, 2)", "(1,2)", 1.0),
    (r"2\pi", "2", 0.0),  # without dollars, math-verify finds the 2
    ("12 cm", "12", 1.0),
    ("12 apples", "12", 1.0),
    ("The area is $12$", "12", 1.0),
    ("50%", "50%", 1.0),
    ("1,000", "1000", 1.0),
]


@needs_math_verify
def test_answer_tags_with_bare_expressions(reward):
    texts = [f"<answer>{text}</answer>" for text, _, _ in BARE]
    assert reward([""] * len(BARE), texts, answer=[answer for _, answer, _ in BARE]) == [each for *_, each in BARE]


@needs_math_verify
def test_verdicts(reward):
    texts = [r"So $\boxed{\frac{2}{4}}$.", r"$\boxed{0.5}$", "The answer is $1/3$", "nothing", r"$\boxed{(1+x)^2}$"]
    answers = ["1/2", "3 + 4 #### 0.5", r"\frac{1}{2}", "1/2", "x^2 + 2x + 1"]
    assert reward([""] * 5, texts, answer=answers) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert reward(["$1/2$"], ["nothing"], answer=[None]) == [None]
    assert reward([], [], answer=[]) == []


@needs_math_verify
def test_reasoning_tags_and_questions(reward):
    completions = {
        r"<think>$\boxed{2}$</think> $\boxed{1}$": 1.0,
        r"<think>$\boxed{1}$</think> $\boxed{2}$": 0.0,
        r"<think>$\boxed{1}$": 0.0,
        r"$\boxed{2}$</think> $\boxed{1}$": 1.0,
        r"$\boxed{2}$ <answer>$1$</answer> 2": 1.0,
        "$\\boxed{1}$\n\nQuestion: $1 + 1$?\nAnswer: $\\boxed{2}$": 1.0,
    }
    assert dict(zip(completions, reward(completions=list(completions), answer=["1"] * 6), strict=True)) == completions


@needs_math_verify
def test_four_bombs_take_as_long_as_one(reward):
    """And good texts in the same batch are judged."""
    texts = ["$1$", *[BOMB] * 4, "$2$", "$3$"]
    answers = ["1", *[BOMB_ANSWER] * 4, "2", "4"]
    found, seconds = timed(reward, completions=texts, answer=answers)
    assert found == [1.0, None, None, None, None, 1.0, 0.0]
    assert 1.5 <= seconds < 5.5  # one after the other, they would take 6 seconds


@needs_math_verify
def test_another_thread_does_not_wait_behind_a_bomb(reward):
    found = []
    thread = threading.Thread(target=lambda: found.append(reward(completions=[BOMB], answer=[BOMB_ANSWER])))
    thread.start()
    time.sleep(0.1)
    verdict = reward(completions=["$1$"], answer=["1"])
    assert (verdict, found) == ([1.0], [])  # the bomb is still being judged
    thread.join(timeout=10)
    assert found == [[None]]  # the time limit holds off the main thread


@needs_math_verify
def test_many_calls_leave_nothing_behind(reward):
    own = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    reward(completions=[BOMB] * 2 + ["$1$"] * 20, answer=[BOMB_ANSWER] * 2 + ["1"] * 20)
    children = psutil.Process(reward._pool.pid).children()
    assert len(children) <= most_judges()
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)
    if own:
        assert len(os.listdir("/proc/self/fd")) == own
        assert len(os.listdir(f"/proc/{reward._pool.pid}/fd")) <= 5 + 2 * most_judges()


@needs_math_verify
def test_killed_processes_are_replaced(reward):
    judges = psutil.Process(reward._pool.pid).children()
    assert judges
    for judge in judges:
        judge.kill()
    assert reward(completions=["$1$"] * 6, answer=["1"] * 6) == [1.0] * 6
    before = reward._pool.pid
    os.kill(before, signal.SIGKILL)
    assert reward(completions=["$1$"], answer=["1"]) == [1.0]
    assert reward._pool.pid != before


@needs_math_verify
def test_a_server_that_dies_while_it_judges():
    """What was asked is asked once more, and then cannot be judged; nothing hangs."""
    reward = MathVerifyReward(timeout_s=30.0)
    assert reward([""], ["$1$"], answer=["1"]) == [1.0]
    found = []
    thread = threading.Thread(target=lambda: found.append(reward(completions=[BOMB], answer=[BOMB_ANSWER])))
    thread.start()
    for _ in range(2):
        pid = reward._pool.pid
        time.sleep(0.3)
        judges = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        for judge in judges:
            judge.kill()
        deadline = time.monotonic() + 30
        while thread.is_alive() and reward._pool.pid == pid and time.monotonic() < deadline:
            time.sleep(0.05)
    thread.join(timeout=30)
    assert found == [[None]]


@needs_math_verify
def test_the_processes_end_with_the_reward():
    reward = MathVerifyReward()
    assert reward([""], ["$1$"], answer=["1"]) == [1.0]
    server = psutil.Process(reward._pool.pid)
    processes = [server, *server.children()]
    assert len(processes) > 1
    copy = pickle.loads(pickle.dumps(reward))
    assert copy._pool.pid is None
    assert copy.timeout_s == reward.timeout_s == 2.0
    del reward
    assert not psutil.wait_procs(processes, timeout=10)[1]


@needs_math_verify
@pytest.mark.parametrize("answer", ["", "  ", [], {}])
def test_unreadable_ground_truths(reward, answer):
    with pytest.raises(RewardError, match="row 1 of the batch"):
        reward(["", ""], ["$1$", "$1$"], answer=["1", answer])


def test_without_the_package(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else find(name))
    with pytest.raises(RewardUnavailableError, match="with its extra `math`"):
        get_reward("math_verify")
    with pytest.raises(RewardUnavailableError, match="with its extra `math`"):
        MathVerifyReward()([""], ["1"], answer=["1"])


def test_without_fork(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delattr(os, "fork")
    with pytest.raises(RewardUnavailableError, match="Linux or macOS"):
        get_reward("math_verify")


@pytest.mark.parametrize("timeout_s", [0, -1, True, "5", float("nan"), float("inf")])
def test_time_limits_that_are_refused(timeout_s):
    with pytest.raises(ConfigError, match="timeout_s"):
        MathVerifyReward(timeout_s)
