"""math-verify in its own process: verdicts, the time limit outside the main thread, and errors without the package."""

from __future__ import annotations

import importlib.util
import pickle
import threading
import time

import pytest

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, RewardUnavailableError, get_reward
from hf_rlae.rewards.math_verify_rule import MathVerifyReward

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed (hf_rlae[math])"
)
ENDLESS = r"$\boxed{9^{9^{9^{9}}}}$"
"""Sympy does not finish on this in any reasonable time."""


@pytest.fixture(scope="module")
def reward():
    return MathVerifyReward(timeout_s=3)


@needs_math_verify
def test_verdicts(reward):
    texts = [r"So $\boxed{\frac{2}{4}}$.", r"$\boxed{0.5}$", "The answer is $1/3$", "nothing", r"$\boxed{(1+x)^2}$"]
    answers = ["1/2", "3 + 4 #### 0.5", r"\frac{1}{2}", "1/2", "x^2 + 2x + 1"]
    assert reward([""] * 5, texts, answer=answers) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert reward(["$1/2$"], ["nothing"], answer=[None]) == [None]


@needs_math_verify
def test_the_time_limit_holds_off_the_main_thread():
    reward = MathVerifyReward(timeout_s=1.0)
    assert reward([""], ["$1$"], answer=["1"]) == [1.0]
    found = []
    process = reward._worker.process

    def judge():
        start = time.monotonic()
        found.append(reward([""], [ENDLESS], answer=["3^{3^{3^3}}"]))
        found.append(time.monotonic() - start)
        found.append(reward([""], ["$1$"], answer=["1"]))

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert (found[0], found[2]) == ([None], [1.0])
    # without the limit, the process would end itself after 7 seconds
    assert 1 <= found[1] < 6
    # the process that took too long is gone, and the new one works
    assert process.poll() is not None
    assert reward._worker.process.poll() is None


@needs_math_verify
def test_the_process_ends_with_the_reward():
    reward = MathVerifyReward()
    assert reward([""], ["$1$"], answer=["1"]) == [1.0]
    process = reward._worker.process
    copy = pickle.loads(pickle.dumps(reward))
    assert copy._worker is None
    assert copy.timeout_s == reward.timeout_s
    del reward
    process.wait(timeout=10)


@needs_math_verify
def test_a_process_that_was_killed_is_replaced(reward):
    assert reward([""], ["$1$"], answer=["1"]) == [1.0]
    reward._worker.process.kill()
    reward._worker.process.wait()
    assert reward([""], ["$1$"], answer=["1"]) == [1.0]


@needs_math_verify
@pytest.mark.parametrize("answer", ["", "  ", [], {}])
def test_unreadable_ground_truths(reward, answer):
    with pytest.raises(RewardError, match="row 1 of the batch"):
        reward(["", ""], ["$1$", "$1$"], answer=["1", answer])


def test_without_the_package(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else find(name))
    with pytest.raises(RewardUnavailableError, match=r"pip install hf_rlae\[math\]"):
        get_reward("math_verify")
    with pytest.raises(RewardUnavailableError, match=r"pip install hf_rlae\[math\]"):
        MathVerifyReward()([""], ["1"], answer=["1"])


@pytest.mark.parametrize("timeout_s", [0, -1, True, "5", float("nan"), float("inf")])
def test_time_limits_that_are_refused(timeout_s):
    with pytest.raises(ConfigError, match="timeout_s"):
        MathVerifyReward(timeout_s)
