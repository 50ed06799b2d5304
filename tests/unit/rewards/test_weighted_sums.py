"""Several rewards as one, and the length penalty."""

from __future__ import annotations

import asyncio
import inspect
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, get_reward, length_penalty, weighted_sum
from hf_rlae.rewards.weighted_sums import total_rewards


def fixed(values):
    def reward(prompts, completions, **columns):
        return list(values)

    return reward


numbers = st.one_of(st.none(), st.just(math.nan), st.floats(-1e3, 1e3))


@given(st.data(), st.integers(1, 4), st.integers(0, 5))
def test_sums_are_those_of_trl(data, num_parts, size):
    """`nansum` of weights times rewards, and NaN where no reward could judge (trl.GRPOTrainer, `reward_weights`)."""
    table = [data.draw(st.lists(numbers, min_size=size, max_size=size)) for _ in range(num_parts)]
    weights = data.draw(st.lists(st.floats(-10, 10), min_size=num_parts, max_size=num_parts))
    found = weighted_sum([fixed(values) for values in table], weights)([""] * size, [""] * size)
    rewards = torch.tensor([[math.nan if v is None else v for v in values] for values in table], dtype=torch.float64).T
    expected = (rewards * torch.tensor(weights, dtype=torch.float64)).nansum(1)
    for row in range(size):
        if rewards[row].isnan().all():
            assert found[row] is None
        else:
            assert found[row] == pytest.approx(float(expected[row]), abs=1e-9)


def test_parts_get_what_they_need():
    """Columns, ids and messages reach every part; names stand for registered rewards."""
    reward = weighted_sum(["gsm8k", "story_sentiment", length_penalty(4, 2)], [1.0, 0.5, 2.0], name="objective")
    completions = [[{"role": "assistant", "content": "It is 12."}]] * 2
    found = reward(prompts=["", ""], completions=completions, completion_ids=[[1], [1, 2, 3]], answer=["12", "13"])
    assert found == [1.0 + 0.25, 0.0 + 0.25 - 1.0]
    assert reward.__name__ == "objective"
    assert "0.5 * story_sentiment_reward" in repr(reward)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(["", ""], completions, [[1], [1, 2, 3]], answer=["12", "13"]) == found
    assert {reward: 1}[reward] == 1


def test_weights_are_1_by_default():
    assert weighted_sum([fixed([0.5]), fixed([0.25])])([""], [""]) == [0.75]


def test_async_parts_run_at_the_same_time():
    met = []

    def slow(index):
        async def reward(prompts, completions, **columns):
            met.append(index)
            while len(met) < 2:
                await asyncio.sleep(0.001)
            return [float(index)] * len(completions)

        return reward

    reward = weighted_sum([slow(1), get_reward("gsm8k"), slow(2)], [1.0, 10.0, 100.0])
    assert inspect.iscoroutinefunction(reward.__call__)
    found = asyncio.run(asyncio.wait_for(reward(["", ""], ["12", "13"], answer=["12", "12"]), timeout=10))
    assert found == [211.0, 201.0]


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ([], None, "at least one reward"),
        ("gsm8k", None, "at least one reward"),
        (["gsm8k"], [1, 2], "a list of 1 numbers"),
        (["gsm8k"], [math.nan], "finite"),
        (["gsm8k"], ["1"], "finite"),
        (["gsm8k"], [True], "finite"),
        (["gsm9k"], None, "no reward named"),
        ([7], None, "int is not a reward function"),
        ([torch.nn.Linear(1, 1)], None, r"reward_model\(\.\.\.\)"),
    ],
)
def test_sums_that_are_refused(rewards, weights, message):
    with pytest.raises(ConfigError, match=message):
        weighted_sum(rewards, weights)


@pytest.mark.parametrize("values", [[1.0], [1.0, "x"], None, 1.0])
def test_parts_that_misbehave(values):
    def broken(prompts, completions, **columns):
        return values

    with pytest.raises(RewardError, match="broken returned"):
        weighted_sum([broken])(["", ""], ["", ""])


@given(st.integers(1, 200), st.data())
def test_length_penalty_follows_the_formula(max_length, data):
    buffer = data.draw(st.integers(1, max_length))
    penalty = length_penalty(max_length, buffer)
    lengths = range(0, max_length + 20)
    found = penalty([""] * len(lengths), [""] * len(lengths), [[0] * n for n in lengths])
    for length, value in zip(lengths, found, strict=True):
        if length <= max_length - buffer:
            assert value == 0.0
        elif length <= max_length:
            assert value == ((max_length - buffer) - length) / buffer
        else:
            assert value == -1.0
    assert found == sorted(found, reverse=True)


def test_units_of_the_length_penalty():
    characters = length_penalty(4, 2, unit="characters")
    assert characters([""] * 2, ["abc", "abcd"], [[0], [0]]) == [-0.5, -1.0]
    with pytest.raises(RewardError, match="completion_ids"):
        length_penalty(4, 2)([""], ["abc"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "max_length"),
        ((4, 0), "buffer"),
        ((4, 5), "buffer=5.*max_length"),
        ((4.5, 1), "max_length"),
        ((4, True), "buffer"),
    ]
    + [((4, 2, "words"), "unit")],
)
def test_penalties_that_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        length_penalty(*arguments)


@pytest.mark.parametrize(
    ("rewards", "weights", "told"),
    [
        pytest.param(
            [[0.0], [1e15]], [2.0], r"sample 1 is 2e\+15, of the rewards \[.*\] with the weights", id="weight"
        ),
        pytest.param([[1e15, 1e15]], [1.0, 1.0], r"sample 0 is 2e\+15", id="sum"),
        pytest.param([[math.inf, -math.inf]], [1.0, 1.0], "sample 0 is nan", id="of models, infinite"),
        pytest.param([[1e38, math.nan]], [1e9, 1.0], "sample 0 is inf", id="overflow"),
    ],
)
def test_sums_beyond_the_limit(rewards, weights, told):
    """Each reward may be small enough, and their sum is not; rewards of models are not guarded."""
    with pytest.raises(RewardError, match=told):
        total_rewards(torch.tensor(rewards), torch.tensor(weights))
