"""The rewards for programs that must pass tests."""

from __future__ import annotations

import pickle
import threading

import pytest

from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards import get_reward
from hf_rlae.rewards.answer_part import Graded
from hf_rlae.rewards.code_rule import HumanEvalReward, MbppReward
from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.sandbox.channel import MAX_LINE_BYTES
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from tests.support.sandboxes import some_sandbox

TESTS = ["assert double(4) == 8", "assert double(0) == 0"]
RIGHT = "def double(n):\n    return 2 * n\n"


@pytest.fixture(scope="module")
def mbpp():
    some_sandbox()  # or the test is skipped
    return get_reward("mbpp")


@pytest.fixture(scope="module")
def humaneval():
    some_sandbox()
    return get_reward("humaneval")


COMPLETIONS = {
    "bare": (RIGHT, 1.0),
    "fenced": (f"Here:\n```python\n{RIGHT}```", 1.0),
    "after reasoning": (f"<think>```\ndef double(n): return 0\n```</think>\n```\n{RIGHT}```", 1.0),
    "only in reasoning": (f"<think>\n```\n{RIGHT}```", 0.0),
    "wrong": ("def double(n): return 8", 0.0),
    "no program": ("I do not know.", 0.0),
    "empty": ("", 0.0),
    "spaces": (" \n", 0.0),
    "cut off": (f"```python\n{RIGHT}", 0.0),
    "zeros": ("\0", 0.0),
    "too long to send": ("# ä" * (MAX_LINE_BYTES // 8), 0.0),
    "half a character": ("def double(n):\n    '\ud800'\n    return 2 * n", 0.0),
}


def test_completions(mbpp):
    texts = [text for text, _ in COMPLETIONS.values()]
    found = mbpp(prompts=["?"] * len(texts), completions=texts, test_list=[TESTS] * len(texts))
    assert dict(zip(COMPLETIONS, found, strict=True)) == {name: score for name, (_, score) in COMPLETIONS.items()}
    messages = [[{"role": "assistant", "content": RIGHT}]]
    assert mbpp(prompts=[[{"role": "user", "content": "?"}]], completions=messages, test_list=[TESTS]) == [1.0]


def test_columns(mbpp):
    """Setup runs first; the reference says whose a name is, and is not run; rows without tests are left out."""
    cheat = "def sorted(x): return 0\ndef first(x): return 1"
    assert mbpp(
        completions=["def f(x): return x + y", RIGHT, cheat, "def Counter(x): return 0\ndef g(x): return 0"],
        test_list=[
            ["assert f(one) == 2"],
            None,
            ["assert sorted(first([3])) == sorted([3])"],
            ["assert g('a') == Counter('a')"],
        ],
        test_setup_code=["one = 1", None, "", None],
        answer=[None, None, None, "from collections import Counter\ndef g(x): return Counter(x)\nraise SystemExit"],
    ) == [0.0, None, 0.0, 0.0]
    assert mbpp(
        completions=["def f(x): return x + 1"], test_list=[["assert f(one) == 2"]], test_setup_code=["one = 1"]
    ) == [1.0]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "column 'test_list' is missing"),
        ({"test_list": ["assert f(1)"]}, "row 0 .*test_list='assert f.1.'; expected a list of statements"),
        ({"test_list": [[]]}, "row 0 .*expected a list of statements"),
        ({"test_list": [["assert f(1"]]}, "row 0 .*not Python"),
        ({"test_list": [["assert 1"]]}, "row 0 .*call nothing"),
        ({"test_list": [["assert f(1)"]], "test_setup_code": [3]}, "row 0 .*test_setup_code=3; expected a string"),
    ],
)
def test_tests_that_cannot_be_read(columns, reason):
    with pytest.raises(RewardError, match=reason):
        MbppReward()(completions=["def f(x): return 1"], **columns)


def test_tests_that_are_too_long_judge_nobody(mbpp):
    long = f"assert double(4) == 8  # {'x' * MAX_LINE_BYTES}"
    (verdict,) = MbppReward().judge_parts([Graded(RIGHT)], Batch("mbpp", 1, {"test_list": [[long]]}))
    assert verdict.passed is None
    assert "the tests are too long" in verdict.reason


def test_options():
    assert MbppReward(limits={"cpu_s": 2.0})._sandbox.limits == SandboxLimits(cpu_s=2.0)
    for options, reason in (
        ({"limits": {"cpu": 2}}, "did you mean 'cpu_s'"),
        ({"limits": {"cpu_s": 0}}, "above 0"),
        ({"backend": "bubble"}, "did you mean 'bubblewrap'"),
        ({"unsafe": True}, "HF_RLAE_UNSAFE_SANDBOX"),
    ):
        with pytest.raises(ConfigError, match=reason):
            MbppReward(**options)


def test_a_reward_can_be_pickled(mbpp):
    copy = pickle.loads(pickle.dumps(MbppReward(limits={"cpu_s": 3.0})))
    assert copy._sandbox.limits.cpu_s == 3.0
    assert copy.__name__ == "mbpp_reward"
    assert copy(completions=[RIGHT], test_list=[TESTS]) == [1.0]


def test_threads_share_a_reward(mbpp):
    found = {}

    def work(number):
        texts = [f"def double(n): return {number} * n + 0 * {at}" for at in range(5)]
        found[number] = mbpp(completions=texts, test_list=[TESTS] * 5)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [float(number == 2)] * 5 for number in range(4)}


PROMPT = 'def poly(x):\n    return x - 2\n\n\ndef zero():\n    """Where poly is 0."""\n'
CHECK = "def check(candidate):\n    assert abs(poly(candidate())) < 1e-4\n"
CONTINUATIONS = {
    "the body": ("    return 2\n", 1.0),
    "the body without its first spaces": ("return 2\n", 1.0),
    "the body in a fence": ("```python\n    x = 1\n    return 2 * x\n```", 1.0),
    "lines without indentation": ("x = 1\nreturn 2 * x", 1.0),
    "all of it": (f"```python\n{PROMPT}    return 2\n```", 1.0),
    "only the function": ("def zero():\n    return 2", 1.0),
    "with imports": ("from __future__ import annotations\ndef zero() -> int:\n    return 2", 1.0),
    "wrong": ("    return 3\n", 0.0),
    "nothing": ("    pass\n", 0.0),
    "a function of the prompt replaced": ("    return 3\n\ndef poly(x):\n    return 0\n", 0.0),
    "check replaced": ("    return 3\n\ndef check(candidate):\n    return True\n", 0.0),
}


@pytest.mark.parametrize("starter", [PROMPT, PROMPT.strip(), None], ids=["exact", "stripped", "from the prompt"])
def test_humaneval(humaneval, starter):
    texts = [text for text, _ in CONTINUATIONS.values()]
    columns = {"test": CHECK, "entry_point": "zero"} | ({} if starter is None else {"starter_code": starter})
    found = humaneval(
        prompts=[PROMPT] * len(texts),
        completions=texts,
        **{name: [value] * len(texts) for name, value in columns.items()},
    )
    assert dict(zip(CONTINUATIONS, found, strict=True)) == {name: score for name, (_, score) in CONTINUATIONS.items()}


def test_humaneval_without_a_beginning(humaneval):
    """A prompt in words: the completion is the whole program."""
    columns = {"test": [CHECK.replace("poly(candidate())", "candidate() - 2")], "entry_point": ["zero"]}
    prompt = [{"role": "user", "content": "Write zero."}]
    for prompts in ([prompt], ["Write zero."], None):
        assert humaneval(prompts=prompts, completions=["def zero(): return 2"], **columns) == [1.0]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"test": ["x = 1"]}, "column 'entry_point' is missing"),
        ({"test": ["x = 1"], "entry_point": ["f"]}, "defines check"),
        ({"test": [CHECK], "entry_point": ["a b"]}, "the name of a function"),
        ({"test": [[CHECK]], "entry_point": ["f"]}, "expected a string"),
    ],
)
def test_humaneval_columns_that_cannot_be_read(columns, reason):
    with pytest.raises(RewardError, match=reason):
        HumanEvalReward()(completions=["x"], **columns)
    assert HumanEvalReward()(completions=["x"], test=[None], entry_point=["f"]) == [None]
