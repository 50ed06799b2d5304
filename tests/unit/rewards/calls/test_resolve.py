"""From `reward_funcs` to numbers."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, get_reward
from hf_rlae.rewards.calls.guarded import GuardedReward
from hf_rlae.rewards.calls.resolve import call_rewards, resolve_rewards
from tests.support.tokenizers import byte_level_bpe


def shortness(completions, **columns):
    return [None if len(completion) > 3 else -float(len(completion)) for completion in completions]


async def answered(completions, answer, **columns):
    await asyncio.sleep(0)
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def classifier(**options):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=len(byte_level_bpe()), **sizes, num_labels=1, **options))


def test_what_may_be_given():
    """A name, a dotted path, a function or a guard, alone or in a list; the order is kept, the list is new."""
    path = f"{__name__}.shortness"
    guard = GuardedReward(shortness, "mine", 3)
    given = ["gsm8k", path, answered, guard, get_reward("number")]
    found = resolve_rewards(given, 7)
    assert [reward.__name__ for reward in found] == ["gsm8k_reward", "shortness", "answered", "mine", "number_reward"]
    assert [reward.timeout_s for reward in found] == [7, 7, 7, 3, 7]
    assert found[0].reward is get_reward("gsm8k")
    assert found[1].reward is shortness
    assert found[3] is guard
    assert given[0] == "gsm8k"
    for single in given:
        assert [reward.__name__ for reward in resolve_rewards(single)] == [resolve_rewards([single])[0].__name__]


def test_models_stay_for_trl(tmp_path):
    """Models, Hub ids and folders are not wrapped."""
    model = classifier()
    assert resolve_rewards(["owner/judge", model, str(tmp_path)]) == ["owner/judge", model, str(tmp_path)]


def test_models_that_are_wrapped(tmp_path):
    """Loaded from a folder, given with a tokenizer, or given with the folder in its config: the same rewards."""
    torch.manual_seed(0)
    tokenizer = byte_level_bpe()
    classifier().save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "judge")
    found = resolve_rewards(
        [str(tmp_path / "judge"), loaded, loaded], wrap_models=True, reward_processing_classes=[None, tokenizer, None]
    )
    assert [(reward.__name__, reward.timeout_s) for reward in found] == [("judge", None)] * 3
    rewards = call_rewards(found, ["one ", "two "], ["a", "bb"])
    assert torch.equal(rewards[:, :1].expand(2, 3), rewards)
    assert rewards[0, 0] != rewards[1, 0]
    with pytest.raises(ConfigError, match="reward_processing_classes"):
        resolve_rewards(classifier(), wrap_models=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, r"reward_funcs is None; give .* a function, the dotted path .*, a .* model, its folder .*gsm8k.*\)$"),
        ([], r"reward_funcs is \[\]"),
        ("gsm8", "did you mean 'gsm8k'"),
        ("two words", "not a registered reward"),
        ("no_such_module.reward", "no_such_module"),
        (f"{__name__}.shortnes", "did you mean 'shortness'"),
        ([shortness, 3], "got int"),
        ({"gsm8k": 1.0}, "got dict"),
        (GuardedReward, "is a class"),
        (torch.nn, "got module"),
    ],
)
def test_nonsense(given, told):
    with pytest.raises(ConfigError, match=told):
        resolve_rewards(given)


def test_calls():
    """N rows, F columns, NaN for `None`, for any order of sync and async functions."""
    prompts, completions, columns = ["p"] * 3, ["a", "bb", "cccc"], {"answer": ["a", "x", "cccc"], "trainer_state": 0}
    expected = torch.tensor([[-1.0, 1.0], [-2.0, 0.0], [torch.nan, 1.0]])
    for order in ([0, 1], [1, 0], [1, 0, 1]):
        funcs = resolve_rewards([(shortness, answered)[at] for at in order])
        found = call_rewards(funcs, prompts, completions, [[1]] * 3, columns)
        assert torch.equal(found.nan_to_num(9), expected[:, order].nan_to_num(9))


def test_samples_that_nobody_judged(caplog):
    call_rewards(resolve_rewards(shortness), ["p", "q"], ["a", "long"])
    assert "no reward could judge 1 of 2 samples, the first: 'q' -> 'long'" in caplog.text


def test_async_rewards_run_at_once():
    """Each of two async rewards and a sync one sees that all three have begun before it ends."""
    begun = []

    async def slow(completions, **columns):
        begun.append("async")
        for _ in range(1000):
            if len(begun) == 3:
                return [1.0]
            await asyncio.sleep(0.01)
        return [0.0]

    def slow_too(completions, **columns):
        begun.append("sync")
        for _ in range(1000):
            if len(begun) == 3:
                return [1.0]
            time.sleep(0.01)
        return [0.0]

    assert call_rewards(resolve_rewards([slow, slow_too, slow]), ["p"], ["c"]).tolist() == [[1.0] * 3]


def test_the_limit_of_each_counts_from_its_start():
    """A failure of one reward does not wait for the others."""

    async def hanging(completions, **columns):
        await asyncio.sleep(9)

    def slow(completions, **columns):
        time.sleep(0.5)
        return [1.0]

    def broken(completions, **columns):
        raise ValueError("broken")

    start = time.monotonic()
    with pytest.raises(RewardError, match=r"hanging exceeded its time limit of 0\.4 s"):
        call_rewards([GuardedReward(hanging, timeout_s=0.4), GuardedReward(slow)], ["p"], ["c"])
    assert time.monotonic() - start < 5
    with pytest.raises(RewardError, match="the reward broken raised"):
        call_rewards([GuardedReward(hanging), GuardedReward(broken)], ["p"], ["c"])
    assert time.monotonic() - start < 8
