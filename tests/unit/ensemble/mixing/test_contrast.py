"""Laws of contrast mixing, and its equation computed token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.ensemble.mixing import ContrastMixing
from hf_rlae.ensemble.mixing.contrast import MOST_RATIO
from hf_rlae.errors import ConfigError

METHODS = ("of_logits", "of_probs")
quick = settings(max_examples=25)
members_of_three = st.lists(st.just(0.0) | st.floats(0.1, 1.0), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1)


def logits(seed: int, members: int = 2) -> list[torch.Tensor]:
    """Logits of each member over seven tokens, `(2, 1, 7)`."""
    return [3 * torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(seed + 7 * k)) for k in range(members)]


def mixed(mixing, method: str, scores: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """What a mixing returns."""
    given_weights = torch.tensor(weights).expand(*scores[0].shape[:2], -1) / sum(weights)
    entries = [score.clone() if method == "of_logits" else score.softmax(-1) for score in scores]
    return getattr(mixing, method)(entries, [score.logsumexp(-1) for score in scores], given_weights)


def equation(row: list[np.ndarray], weights: list[float], alpha: float, beta: float | None, temperature: float):
    """The probabilities of one row, from M arrays of logits `(V,)`, one token after the other."""

    def softmax(values):
        powers = np.exp(values - values.max())
        return powers / powers.sum()

    with_weight = [k for k, weight in enumerate(weights) if weight > 0]
    strong, weak = with_weight[0], with_weight[1:]
    p_s = softmax(row[strong])
    found = np.zeros_like(p_s)
    for y in range(len(p_s)):
        if weak and p_s[y] < alpha * p_s.max():
            continue
        score = math.log(p_s[y])
        for k in weak:
            share = weights[k] / weights[strong]
            log_weak = math.log(softmax(row[k] / temperature)[y])
            score += -share * log_weak if beta is None else beta * share * (math.log(p_s[y]) - log_weak)
        found[y] = math.exp(score)
    return found / found.sum()


@quick
@given(
    weights=members_of_three,
    seed=st.integers(0, 99),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    beta=st.sampled_from([None, 0.0, 0.5, 2.0]),
    temperature=st.sampled_from([1.0, 0.5]),
    method=st.sampled_from(METHODS),
)
def test_the_equation(weights, seed, alpha, beta, temperature, method):
    scores = logits(seed, 3)
    found = mixed(ContrastMixing(alpha, beta, temperature), method, scores, weights)
    for row in range(2):
        expected = equation([s[row, 0].double().numpy() for s in scores], weights, alpha, beta, temperature)
        np.testing.assert_allclose(found[row, 0].softmax(-1), expected, atol=2e-5)


@quick
@given(seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 0.1, 1.0]), method=st.sampled_from(METHODS))
def test_the_scale_is_that_of_the_members(seed, alpha, method):
    scores = logits(seed)
    found = mixed(ContrastMixing(alpha), method, scores, [0.75, 0.25])
    shift = 0.75 * scores[0].logsumexp(-1) + 0.25 * scores[1].logsumexp(-1)
    torch.testing.assert_close(found.logsumexp(-1), shift, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_alpha_1_leaves_the_strong_members_most_likely_token(method):
    for seed in range(20):
        scores = logits(seed)
        found = mixed(ContrastMixing(alpha=1.0), method, scores, [0.5, 0.5])
        assert torch.equal(found.argmax(-1), scores[0].argmax(-1))
        assert torch.equal(found.softmax(-1).amax(-1), torch.ones(2, 1))


@pytest.mark.parametrize("method", METHODS)
def test_implausible_tokens_have_no_probability_and_the_strong_members_order(method):
    scores = logits(3)
    found = mixed(ContrastMixing(alpha=0.3, beta=0.5), method, scores, [0.5, 0.5])
    probs = scores[0].softmax(-1)
    implausible = probs < 0.3 * probs.amax(-1, keepdim=True)
    assert 2 < int(implausible.sum()) < 12
    assert torch.equal(found.softmax(-1) == 0, implausible)
    left = found.masked_fill(~implausible, -torch.inf).softmax(-1)
    expected = scores[0].masked_fill(~implausible, -torch.inf).softmax(-1)
    torch.testing.assert_close(left, expected, atol=1e-4, rtol=0)
    assert torch.equal((found / 5).softmax(-1) == 0, implausible)  # also at a temperature of 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_a_row_with_one_member_is_that_member(weights, method):
    """Law: without contrast nothing is ruled out, also where other rows of the batch have both members."""
    scores = logits(5)
    both = torch.tensor([weights, [0.5, 0.5]])[:, None]
    entries = [score.clone() if method == "of_logits" else score.softmax(-1) for score in scores]
    found = getattr(ContrastMixing(), method)(entries, [score.logsumexp(-1) for score in scores], both)
    member = weights.index(1.0)
    torch.testing.assert_close(found[0], scores[member][0], atol=1e-5, rtol=1e-5)
    expected = mixed(ContrastMixing(), method, scores, [0.5, 0.5])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("method", METHODS)
def test_members_that_agree_are_that_member_with_beta_and_alike_without(method):
    """Law: with `beta`, copies of a member are that member; the difference alone makes all tokens equally likely."""
    scores = logits(1)[:1] * 2
    found = mixed(ContrastMixing(alpha=0.0, beta=0.7), method, scores, [0.5, 0.5])
    torch.testing.assert_close(found, scores[0], atol=1e-5, rtol=1e-5)
    found = mixed(ContrastMixing(alpha=0.0), method, scores, [0.5, 0.5])
    torch.testing.assert_close(found.softmax(-1), torch.full((2, 1, 7), 1 / 7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_probability_0(method):
    """What the strong member rules out is ruled out; a ratio to nothing is a large one."""
    strong = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]]).log()
    weak = torch.tensor([[[0.5, 0.0, 0.25, 0.25]]]).log()
    found = mixed(ContrastMixing(alpha=0.1), method, [strong, weak], [0.5, 0.5]).exp()[0, 0]
    expected = torch.tensor([1.0, MOST_RATIO, 0.8, 0.0])
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-6, rtol=1e-4)


def test_a_member_without_weight_may_be_broken():
    scores = [*logits(2), torch.full((2, 1, 7), torch.nan)]
    found = mixed(ContrastMixing(), "of_logits", scores, [0.5, 0.5, 0.0])
    torch.testing.assert_close(found, mixed(ContrastMixing(), "of_logits", scores[:2], [0.5, 0.5]))


def test_a_row_without_mass_stays_without_mass():
    """A member that cannot continue has weight 0 and no probabilities; a row without any mass is -inf, not NaN."""
    probs = [torch.tensor([[0.25, 0.75], [0.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])]
    log_z = [torch.tensor([0.0, -torch.inf])] * 2
    found = ContrastMixing(alpha=0.0).of_probs(probs, log_z, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.25, 0.75], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"alpha": -0.1}, "alpha=-0.1: give a finite number of at least 0 and at most 1"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": "0.1"}, "alpha='0.1'"),
        ({"alpha": torch.nan}, "alpha=nan"),
        ({"beta": -1}, "beta=-1: give a finite number of at least 0, or None"),
        ({"temperature": 0}, "temperature=0: give a finite number above 0"),
        ({"temperature": True}, "temperature=True"),
    ],
)
def test_values_that_are_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        ContrastMixing(**values)
