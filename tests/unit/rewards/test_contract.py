"""Guarantees of every registered reward: TRL's contract, names, pickling, errors."""

from __future__ import annotations

import functools
import importlib
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import hf_rlae.rewards
from hf_rlae.errors import ConfigError
from hf_rlae.rewards import Reward, RewardError, get_reward, list_rewards, rewards
from hf_rlae.rewards.contract import completion_text, is_async, name_of

TASKS = {
    "letter": ["mmlu", "arc_challenge", "gpqa", "piqa"],
    "number": ["gsm8k", "svamp", "arithmetic_chain"],
    "exact_match": ["triviaqa"],
    "sentiment": ["imdb", "story_sentiment"],
}
ROWS = {"letter": "B", "number": "12", "exact_match": "Paris", "sentiment": None}
"""By rule, an answer that is right as a completion."""

NAMES = [(name, rule) for rule, tasks in TASKS.items() for name in (rule, *tasks)]


@pytest.mark.parametrize(("name", "rule"), NAMES)
class TestEveryReward:
    def test_name(self, name, rule):
        """Each task has its own name, which TRL logs."""
        assert get_reward(name).__name__ == f"{name}_reward" == name_of(get_reward(name))
        assert type(get_reward(name)) is type(get_reward(rule))
        assert get_reward(name) is get_reward(name)

    def test_dotted_path(self, name, rule):
        """As TRL's scripts resolve `--reward_funcs hf_rlae.rewards.<name>`."""
        assert getattr(importlib.import_module("hf_rlae.rewards"), name) is get_reward(name)
        assert name in dir(hf_rlae.rewards)

    def test_pickle_and_hash(self, name, rule):
        reward = get_reward(name)
        copy = pickle.loads(pickle.dumps(reward))
        columns = {} if ROWS[rule] is None else {"answer": [ROWS[rule]] * 2}
        texts = [ROWS[rule] or "happy", "?"]
        assert copy(["", ""], texts, **columns) == reward(["", ""], texts, **columns)
        assert copy.__name__ == reward.__name__
        assert {reward: 1}[reward] == 1

    def test_what_trl_gives(self, name, rule):
        """The keywords of TRL's trainers, messages, and columns that the reward does not read."""
        reward = get_reward(name)
        text = ROWS[rule] or "happy"
        kwargs = {"trainer_state": object(), "log_extra": print, "log_metric": print, "environments": None}
        kwargs |= {} if ROWS[rule] is None else {"answer": [ROWS[rule]] * 2}
        out = reward(
            prompts=[[{"role": "user", "content": "?"}]] * 2,
            completions=[[{"role": "assistant", "content": text}]] * 2,
            completion_ids=[[1], [2, 3]],
            question=["?"],
            **kwargs,
        )
        assert out == reward(["?"] * 2, [text] * 2, **kwargs)
        assert all(type(each) is float for each in out)
        assert out[0] == 1.0 or rule == "sentiment"

    def test_no_rows(self, name, rule):
        assert get_reward(name)(prompts=[], completions=[], answer=[]) == []


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, rule in NAMES if rule != "sentiment"])
def test_ground_truths_that_are_not_there(name, rule):
    reward = get_reward(name)
    assert reward([""] * 2, [ROWS[rule]] * 2, answer=[None, ROWS[rule]]) == [None, 1.0]
    expected = r"column 'answer' is missing; .* completions, prompts, solution\. .* set remove_unused_columns=False"
    with pytest.raises(RewardError, match=expected):
        reward(prompts=[""], completions=["x"], solution=["x"])


def test_every_task_and_rule_is_there():
    assert {name for name, _ in NAMES} | {"math_verify"} <= set(list_rewards())
    assert list_rewards() == sorted(list_rewards())


def test_unknown_names():
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        get_reward("gsm9k")
    with pytest.raises(AttributeError, match="no attribute 'gsm9k'"):
        _ = hf_rlae.rewards.gsm9k


def test_options():
    with pytest.raises(
        RewardError, match=r"lexicon is not an option of \w+: Known: answer_delimiters, .*reasoning_delimiters"
    ):
        get_reward("gsm8k", lexicon="x")
    with pytest.raises(
        RewardError, match=r"letters is not an option of \w+: .*Known: answer_delimiters, .*num_choices"
    ):
        get_reward("mmlu", letters=4)
    assert get_reward("mmlu", num_choices=4) is not get_reward("mmlu")


def test_a_rule_is_one_file(tmp_path):
    """A module on the package's path whose name ends in `_rule` is found without any other change."""
    (tmp_path / "brevity_rule.py").write_text(
        textwrap.dedent(
            """
            from hf_rlae.rewards.registry import rewards

            @rewards.register("brevity")
            def brevity(prompts, completions, **columns):
                return [1.0 / (1 + len(text)) for text in completions]
            """
        )
    )
    script = f"""
import hf_rlae.rewards
hf_rlae.rewards.__path__.append({str(tmp_path)!r})
from hf_rlae.rewards import get_reward, list_rewards
assert get_reward("brevity")([""], ["abc"]) == [0.25]
assert "brevity" in list_rewards() and "gsm8k" in list_rewards()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_importing_is_cheap():
    """Rules and registry need neither torch nor TRL nor datasets."""
    script = (
        "import sys; from hf_rlae.rewards import get_reward, list_rewards; list_rewards(); get_reward('gsm8k')\n"
        "heavy = {'torch', 'trl', 'datasets', 'transformers', 'math_verify'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_own_rewards(registries):
    @rewards.register("test_own")
    def own(prompts, completions, **columns):
        return [0.5] * len(completions)

    assert get_reward("test_own") is own
    with pytest.raises(RewardError, match="plain function"):
        get_reward("test_own", strength=2)
    with pytest.raises(ConfigError, match="registered twice"):
        rewards.register("test_own")(own)


MESSAGES = {
    "string": ("B", "B"),
    "empty_string": ("", ""),
    "one_message": ([{"role": "assistant", "content": "B"}], "B"),
    "last_message": ([{"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}], "B"),
    "tool_behind": ([{"role": "assistant", "content": "B"}, {"role": "tool", "content": "C"}], "B"),
    "user_between": (
        [
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "C"},
            {"role": "assistant", "content": "B"},
        ],
        "B",
    ),
    "no_role": ([{"content": "B"}], "B"),
    "message_alone": ({"role": "assistant", "content": "B"}, "B"),
    "parts": ([{"role": "assistant", "content": [{"type": "text", "text": "B"}, {"type": "text", "text": "C"}]}], "BC"),
    "image_part": ([{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "B"}]}], "B"),
    "no_content": ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
    "no_messages": ([], ""),
}


@pytest.mark.parametrize(("completion", "text"), MESSAGES.values(), ids=MESSAGES)
def test_texts_of_completions(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    "completion",
    [
        None,
        7,
        b"B",
        ["B"],
        [{"role": "user", "content": "B"}],
        [{"role": "assistant", "content": 7}],
        [[{"content": "B"}]],
    ],
)
def test_completions_that_are_refused(completion):
    with pytest.raises(RewardError, match="gsm8k_reward: completion 1 is"):
        get_reward("gsm8k")(["", ""], ["12", completion], answer=["12", "12"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [""], "completions": None}, "completions must be a list"),
        ({"prompts": [""], "completions": "12"}, "completions must be a list"),
        ({"prompts": ["", ""], "completions": ["12"]}, "prompts has 2 values for 1 completions"),
        ({"completions": ["12"], "completion_ids": [[1], [2]]}, "completion_ids has 2 values"),
        ({"completions": ["12"], "answer": ["12", "13"]}, "answer has 2 values for 1 completions"),
        ({"completions": ["12"], "answer": "12"}, "answer must be a list"),
        ({"completions": ["12"], "answer": 12}, "answer must be a list"),
    ],
)
def test_calls_that_are_refused(arguments, message):
    with pytest.raises(RewardError, match=message):
        get_reward("gsm8k")(**{"answer": ["12"], **arguments})


def test_further_columns_are_checked_as_well():
    with pytest.raises(RewardError, match="choices has 2 values for 1"):
        get_reward("mmlu")([""], ["B"], answer=["B"], choices=[["x", "y"]] * 2)


def test_ground_truths_are_read_before_any_text():
    class Counting(type(get_reward("number"))):
        graded = 0

        def is_right(self, text, reference, row):
            Counting.graded += 1
            return True

    with pytest.raises(RewardError, match="row 2"):
        Counting("counting")([""] * 3, ["1"] * 3, answer=["1", "2", "x"])
    assert Counting.graded == 0


def test_columns_may_be_arrays():
    assert get_reward("gsm8k")(np.array(["", ""]), np.array(["12", "13"]), answer=np.array([12, 12])) == [1.0, 0.0]


def test_names_and_async():
    async def wait(prompts, completions, **columns):
        return [0.0] * len(completions)

    class Waiting:
        async def __call__(self, prompts, completions, **columns):
            return [0.0] * len(completions)

    assert [name_of(wait), name_of(functools.partial(wait)), name_of(Waiting())] == ["wait", "wait", "Waiting"]
    assert all(map(is_async, [wait, functools.partial(wait), Waiting(), functools.partial(Waiting())]))
    assert not any(map(is_async, [get_reward("gsm8k"), len, Reward]))
