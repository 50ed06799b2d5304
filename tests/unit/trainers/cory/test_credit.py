"""What each agent of a chain learns from, against brute force on small tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers import CoryConfig
from hf_rlae.trainers.cory.credit import credited_rewards

REWARDS = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=4)


@given(REWARDS)
def test_team_is_the_sum_and_own_leaves_out_what_the_agent_cannot_change(values):
    rewards = [torch.tensor(row)[:, None] for row in values]
    total = torch.tensor(values).sum(0)[:, None]
    readers, alone = [False] + [True] * (len(rewards) - 1), [False] * len(rewards)
    for position in range(len(rewards)):
        torch.testing.assert_close(credited_rewards(rewards, position, "team", readers), total)
        later = credited_rewards(rewards, position, "own", readers)
        torch.testing.assert_close(later + sum(rewards[:position], torch.zeros(3, 1)), total)
        assert torch.equal(credited_rewards(rewards, position, "own", alone), rewards[position])


def test_unjudged_rewards_have_no_sum():
    rewards = [torch.tensor([[torch.nan, 1.0]]), torch.tensor([[1.0, 1.0]])]
    assert credited_rewards(rewards, 0, "team", [False, True]).isnan().tolist() == [[True, False]]
    assert credited_rewards(rewards, 1, "own", [False, True]).tolist() == [[1.0, 1.0]]
    assert total_rewards(torch.tensor([[torch.nan, 2.0]]), torch.tensor([1.0, 0.5])).tolist() == [1.0]


def test_the_former_name_is_taken_over_with_a_warning():
    with pytest.warns(FutureWarning, match="observer_reward is now credit"):
        args = CoryConfig("out", observer_reward="own", use_cpu=True)
    assert (args.credit, args.observer_reward) == ("own", None)
    with pytest.raises(ConfigError, match="former name of credit='own'"):
        CoryConfig("out", credit="own", observer_reward="team", use_cpu=True)
