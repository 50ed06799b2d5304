"""Laws of power mixing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.ensemble.mixing import LinearMixing, LogMixing, PowerMixing
from hf_rlae.errors import ConfigError

METHODS = ("of_logits", "of_probs")
quick = settings(max_examples=25)
# tinier weights give logits of -1000 and less, whose rounding is no longer small
weight_lists = st.lists(st.just(0.0) | st.floats(1e-4, 1.0), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1)


def logits(seed: int, ruled_out: bool = False) -> list[torch.Tensor]:
    """Logits of three members over seven tokens, `(2, 1, 7)` each; with `ruled_out` each one rules out other tokens."""
    scores = [3 * torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(seed + member)) for member in range(3)]
    if ruled_out:
        for member, score in enumerate(scores):
            score[..., member::3] = -torch.inf
    return scores


def mixed(mixing, method: str, scores: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """What a mixing returns."""
    given_weights = torch.tensor(weights).expand(2, 1, -1) / sum(weights)
    entries = [score.clone() if method == "of_logits" else score.softmax(-1) for score in scores]
    return getattr(mixing, method)(entries, [score.logsumexp(-1) for score in scores], given_weights)


@quick
@given(weights=weight_lists, seed=st.integers(0, 99), method=st.sampled_from(METHODS), ruled_out=st.booleans())
def test_exponent_1_is_linear_mixing(weights, seed, method, ruled_out):
    scores = logits(seed, ruled_out)
    expected = mixed(LinearMixing(), method, scores, weights)
    torch.testing.assert_close(mixed(PowerMixing(1.0), method, scores, weights), expected, atol=1e-5, rtol=1e-5)


@quick
@given(weights=weight_lists, seed=st.integers(0, 99), method=st.sampled_from(METHODS))
def test_small_exponents_are_close_to_log_mixing(weights, seed, method):
    scores = logits(seed)
    expected = mixed(LogMixing(), "of_logits", scores, weights)
    torch.testing.assert_close(mixed(PowerMixing(1e-3), method, scores, weights), expected, atol=0.05, rtol=0)


@quick
@given(
    weights=weight_lists,
    seed=st.integers(0, 99),
    exponent=st.sampled_from([0.1, 0.25, 0.5, 2.0]),
    order=st.permutations(range(3)),
    ruled_out=st.booleans(),
)
def test_order_sum_and_support(weights, seed, exponent, order, ruled_out):
    """Members have no order, both methods agree, and what one member with weight proposes is possible."""
    scores, mixing = logits(seed, ruled_out), PowerMixing(exponent)
    found = mixed(mixing, "of_logits", scores, weights)
    others = [mixed(mixing, "of_probs", scores, weights)]
    others += [mixed(mixing, method, [scores[i] for i in order], [weights[i] for i in order]) for method in METHODS]
    for other in others:
        torch.testing.assert_close(other, found, atol=1e-4, rtol=1e-5)
    shift = sum(w / sum(weights) * score.logsumexp(-1) for w, score in zip(weights, scores, strict=True))
    torch.testing.assert_close(found.logsumexp(-1), shift, atol=1e-5, rtol=1e-5)
    proposes = [torch.isfinite(score) for w, score in zip(weights, scores, strict=True) if w > 1e-6]
    possible = torch.isfinite(found)
    assert all(bool(possible[entry].all()) for entry in proposes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("member", range(3))
def test_all_weight_on_one_member_is_that_member(member, exponent, method):
    scores = logits(5, ruled_out=True)
    found = mixed(PowerMixing(exponent), method, scores, [float(index == member) for index in range(3)])
    torch.testing.assert_close(found, scores[member], atol=1e-5, rtol=1e-5)


def test_a_row_without_mass_stays_without_mass():
    """A member that cannot continue has weight 0 and no probabilities; a row without any mass is -inf, not NaN."""
    probs = [torch.tensor([[0.25, 0.75], [0.0, 0.0]])]
    log_z = [torch.tensor([0.0, -torch.inf])]
    found = PowerMixing().of_probs(probs, log_z, torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.25, 0.75], [0.0, 0.0]]))


@pytest.mark.parametrize("exponent", [0.0, -1.0, torch.nan, torch.inf])
def test_exponents_that_are_refused(exponent):
    with pytest.raises(ConfigError, match=r"exponent=.*mixing='log'"):
        PowerMixing(exponent)
