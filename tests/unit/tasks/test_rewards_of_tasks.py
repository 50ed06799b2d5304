"""Every task names a reward that accepts its columns."""

from __future__ import annotations

import pytest

from hf_rlae.rewards import get_reward
from hf_rlae.tasks import get_task, load_task, tasks
from tests.support.sandboxes import some_sandbox

WITH_REWARD = [name for name in tasks if get_task(name).reward is not None]


@pytest.mark.parametrize("prompt_format", ["conversational", "standard"])
@pytest.mark.parametrize("name", [name for name in WITH_REWARD if name not in ("imdb", "story_sentiment")])
def test_replies_are_right(name, prompt_format):
    """The reply in a few-shot prompt gets the reward 1.0, and the reply to another answer 0.0."""
    task = get_task(name)
    source = None if task.generate else "built_in"
    rows = load_task(name, task.splits[0], source, 5, prompt_format=prompt_format)
    columns = rows.to_dict()
    prompts = columns.pop("prompt")
    replies = columns.get("solution", columns["answer"])  # of HumanEval, the answer continues the prompt
    wrong = [next(r for r, b in zip(replies, columns["answer"], strict=True) if a != b) for a in columns["answer"]]
    if task.reward in ("mbpp", "humaneval"):
        some_sandbox()  # or the test is skipped
    reward = get_reward(task.reward)
    for completions, expected in ((replies, 1.0), (wrong, 0.0), ([""] * 5, 0.0)):
        if prompt_format == "conversational":
            completions = [[{"role": "assistant", "content": completion}] for completion in completions]
        assert reward(prompts=prompts, completions=completions, **columns) == [expected] * 5


@pytest.mark.parametrize("name", ["imdb", "story_sentiment"])
def test_sentiment(name):
    """A happy continuation gets a higher reward than a sad one, and both are in [0, 1]."""
    columns = load_task(name, "train", "built_in", limit=2).to_dict()
    prompts = columns.pop("prompt")
    completions = ["was happy and loved the wonderful party.", "was sad and hated the terrible pain."]
    happy, gloomy = get_reward(name)(prompts=prompts, completions=completions, **columns)
    assert 0 <= gloomy < 0.5 < happy <= 1
