"""What each agent of a chain learns from, against brute force on small tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.objectives import group_relative
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers import CoryConfig
from hf_rlae.trainers.cory.credit import credited_rewards, difference_rewards, normalized_rewards, tied_rewards
from hf_rlae.trainers.cory.shapley import answer_in, further_answers, shapley_values

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


# -- difference -------------------------------------------------------------------------------------------


def naive_differences(reach: Sequence[float], earlier: Sequence[Sequence[float]]) -> list[float]:
    """Of one prompt and one function, by loops over pairs of completions."""
    found = []
    for row, own in enumerate(reach):
        others = [other for other in range(len(reach)) if other != row and not math.isnan(reach[other])]
        like = [other for other in others if str(earlier[other]) == str(earlier[row])] or others
        found.append(own - (sum(reach[other] for other in like) / len(like) if like else own))
    return found


REACH = st.one_of(st.just(math.nan), st.sampled_from([0.0, 1.0, 2.0]))


@given(st.lists(st.tuples(REACH, st.sampled_from([0.0, 1.0, math.nan])), min_size=6, max_size=6))
def test_differences_are_to_the_same_agents_other_answers_after_equally_good_ones(rows):
    reach, earlier = torch.tensor(rows)[:, :1], torch.tensor(rows)[:, 1:]
    found = difference_rewards(reach, earlier, 3)[:, 0]
    for start in (0, 3):
        part = rows[start : start + 3]
        expected = naive_differences([own for own, _ in part], [[before] for _, before in part])
        torch.testing.assert_close(found[start : start + 3], torch.tensor(expected), equal_nan=True)


def test_differences_of_a_chain():
    """The pioneer's are `own` against the other completions; the observer's compare like references."""
    pioneer = torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None]
    observer = torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]
    readers = [False, True]
    first, second = (credited_rewards([pioneer, observer], at, "difference", readers, 4)[:, 0] for at in (0, 1))
    own = (pioneer + observer)[:, 0]
    torch.testing.assert_close(first, (own - own.mean()) * 4 / 3)
    assert second.tolist() == [1.0, -1.0, 1.0, -1.0]
    alone = credited_rewards([pioneer, observer], 1, "difference", [False, False], 4)[:, 0]
    torch.testing.assert_close(alone, (observer[:, 0] - 0.5) * 4 / 3)


def test_differences_leave_the_expected_gradient_as_it_is():
    """The default does not depend on the answer: over all answers of one row, weighted, it adds nothing.

    Exact: two completions of a prompt, each a pioneer's and an observer's answer of two possible ones.
    """
    logits = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.9]], dtype=torch.float64)  # pioneer; observer after 0, 1
    probs = logits.softmax(-1)
    pays = [[1.0, 0.0], [2.0, 0.5]]  # of each agent's two answers

    def expected_gradient(credit):
        total = torch.zeros(2, 3, 2, dtype=torch.float64)  # agents, distributions, answers
        for texts in itertools.product(range(2), repeat=4):
            rows = [texts[:2], texts[2:]]
            chance = math.prod(float(probs[0, a] * probs[1 + a, b]) for a, b in rows)
            rewards = [torch.tensor([[pays[agent][row[agent]]] for row in rows]) for agent in (0, 1)]
            for agent in (0, 1):
                learned = credited_rewards(rewards, agent, credit, [False, True], 2)[:, 0]
                for row, gain in zip(rows, learned.tolist(), strict=True):
                    where = 0 if agent == 0 else 1 + row[0]
                    score = torch.nn.functional.one_hot(torch.tensor(row[agent]), 2) - probs[where]
                    total[agent, where] += chance * gain * score
        return total

    assert expected_gradient("team").abs().max() > 0.1
    torch.testing.assert_close(expected_gradient("own"), expected_gradient("team"))
    # as in RLOO, a default of the other completion is exact
    torch.testing.assert_close(expected_gradient("difference"), expected_gradient("team"))


# -- Shapley values ---------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(0, 1000), st.lists(st.booleans(), min_size=3, max_size=3))
def test_shapley_values_are_means_over_all_orders(count, seed, reads):
    """What an agent adds to those before it, averaged over permutations."""
    readers = [False, *reads][:count]
    draw = torch.Generator().manual_seed(seed)
    everybody = frozenset(range(count))
    answers = [answer_in(place, everybody, readers) for place in range(count)] + further_answers(readers)
    assert len(set(answers)) == len(answers)
    assert len(answers) == 2**count - 1 or not all(readers[1:])
    rewards = {answer: torch.randn(2, 3, generator=draw, dtype=torch.float64) for answer in answers}

    def value(team):
        return sum((rewards[answer_in(place, frozenset(team), readers)] for place in team), torch.zeros(2, 3))

    orders = list(itertools.permutations(range(count)))
    values = shapley_values(rewards, readers)
    for place in range(count):
        added = [value(order[: order.index(place) + 1]) - value(order[: order.index(place)]) for order in orders]
        torch.testing.assert_close(values[place], sum(added) / len(orders))
    torch.testing.assert_close(sum(values), value(range(count)))


def test_further_answers_come_after_those_they_read():
    found = further_answers([False, True, True])
    assert found == [(1, frozenset()), (2, frozenset()), (2, frozenset({0})), (2, frozenset({1}))]
    assert further_answers([False, False]) == []


# -- normalisation and shared references ------------------------------------------------------------------


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-3, 3)), min_size=12, max_size=12))
def test_normalized_rewards_sum_to_the_advantages_of_the_agent_alone(values):
    rewards, weights = torch.tensor(values, dtype=torch.float64).view(6, 2), torch.tensor([1.0, 0.5])
    judged = rewards.isnan().any(1)
    rewards[judged] = torch.nan  # where both functions judge or neither does
    found = total_rewards(normalized_rewards(rewards, weights, 3), weights)
    expected = group_relative(total_rewards(rewards, weights), 3)
    torch.testing.assert_close(found.nan_to_num(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.isnan(), judged)


def test_an_agents_own_signal_is_as_large_as_without_a_team():
    """The slope of what an agent learns from in its own reward; sums that are divided again have a smaller one."""
    draw = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 4000, 1, generator=draw)
    weights, size = torch.ones(1), 4000
    alone = normalized_rewards(own, weights, size)
    normalized = [alone, normalized_rewards(other * 5, weights, size)]
    team = credited_rewards(normalized, 0, "team", [False, True])
    again = normalized_rewards(own + other * 5, weights, size)
    slope = [float((learned * alone).mean()) for learned in (team, again)]
    assert slope[0] == pytest.approx(1, abs=0.05)
    assert slope[1] == pytest.approx(1 / math.sqrt(26), abs=0.05)


def test_what_an_agent_cannot_change_is_constant_with_shared_references():
    rewards = [torch.tensor(column)[:, None] for column in ([1.0, 0.0, 3.0, 4.0], [5.0, 7.0, 1.0, torch.nan])]
    for_pioneer, for_observer = (tied_rewards(rewards, place, 2) for place in (0, 1))
    assert for_pioneer[0] is not rewards[0]
    assert torch.equal(for_pioneer[0], rewards[0])
    assert for_pioneer[1][:, 0].tolist() == [6.0, 6.0, 1.0, 1.0]
    assert for_observer[0][:, 0].tolist() == [1.0, 1.0, 3.0, 3.0]


# -- the configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"observer_groups": "shared"}, "observer_groups='shared': Known: own_reference", id="unknown"),
        pytest.param(
            {"observer_groups": "shared_reference", "knowledge_transfer": False}, "nobody reads", id="nobody reads"
        ),
        pytest.param({"credit": "shapley", "num_agents": 6}, "63 for num_agents=6", id="too many teams"),
        pytest.param(
            {"credit": "shapley", "observer_groups": "shared_reference"},
            "observer_groups=.*Shapley",
            id="one reference",
        ),
        pytest.param({"credit": "shapley", "team_normalization": True}, "team_normalization=True: Shap", id="scaled"),
        pytest.param({"team_normalization": True, "scale_rewards": "batch"}, "again; leave it out", id="scaled twice"),
        pytest.param(
            {"team_normalization": True, "multi_objective_aggregation": "normalize_then_sum"}, "both", id="two sums"
        ),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        CoryConfig("out", use_cpu=True, **options)


def test_normalized_sums_are_not_divided_again():
    assert CoryConfig("out", use_cpu=True).scale_rewards == "group"
    assert CoryConfig("out", use_cpu=True, team_normalization=True).scale_rewards == "none"


def test_the_former_name_is_taken_over_with_a_warning():
    with pytest.warns(FutureWarning, match="observer_reward is now credit"):
        args = CoryConfig("out", observer_reward="own", use_cpu=True)
    assert (args.credit, args.observer_reward) == ("own", None)
    with pytest.raises(ConfigError, match="former name of credit='own'"):
        CoryConfig("out", credit="own", observer_reward="team", use_cpu=True)
