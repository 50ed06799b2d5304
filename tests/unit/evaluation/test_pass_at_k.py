"""pass@k: the estimator is unbiased, and completions that could not be judged do not count."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from hf_rlae.errors import ConfigError, InputError
from hf_rlae.evaluation.pass_at_k import PassAtK, estimate_pass_at_k, pass_at_k
from tests.support.sandboxes import some_sandbox


@pytest.mark.parametrize("num_samples", range(1, 7))
def test_the_estimate_is_the_share_of_draws_with_a_right_one(num_samples):
    for num_correct in range(num_samples + 1):
        passes = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in itertools.combinations(passes, k)]
            assert estimate_pass_at_k(num_samples, num_correct, k) == pytest.approx(statistics.mean(draws))


def test_many_samples_do_not_overflow():
    assert estimate_pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    assert estimate_pass_at_k(10_000, 9_999, 2) == 1.0


@pytest.mark.parametrize(
    ("numbers", "name"), [((3, 1, 4), "num_samples"), ((3, 4, 1), "num_correct"), ((3, 1, 0), "k")]
)
def test_numbers_that_are_out_of_range(numbers, name):
    with pytest.raises(ConfigError, match=name):
        estimate_pass_at_k(*numbers)


def test_means_over_tasks():
    rewards = [[1.0, None, 0.0], [0.0, math.nan, 0.0], [None, 1.0, None]]
    assert pass_at_k(rewards) == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert pass_at_k(rewards, k=2) == pytest.approx((1.0 + 0.0) / 2)  # the third has one judged completion
    assert math.isnan(pass_at_k(rewards, k=3))
    assert math.isnan(pass_at_k([]))
    with pytest.raises(InputError, match=r"0\.5"):
        pass_at_k([[0.5]])


def test_the_metric_of_programs():
    some_sandbox()  # or the test is skipped
    right, wrong = "def f(): return 1", "def f(): return 2"
    metric = PassAtK(k=[1, 2, 3])
    metric.add(prediction=[right, wrong], reference={"test_list": ["assert f() == 1"]})
    metric.add(prediction=[wrong, wrong], reference={"test_list": ["assert f() == 1"], "answer": right})
    metric.add(prediction=[right, right], reference={"test_list": None})
    assert metric.compute() == {"pass@1": 0.25, "pass@2": 0.5, "num_judged": 4, "num_unjudged": 2}


def test_predictions_that_are_no_lists():
    for prediction in ("5", [{"role": "assistant", "content": "5"}]):
        with pytest.raises(InputError, match="a list with all completions"):
            PassAtK("number").compute(predictions=[prediction], references=[{"answer": "5"}])
    with pytest.raises(ConfigError, match="k=0"):
        PassAtK("number", k=[0])
