"""The attributes of a state, against plain references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae import PolicyState
from hf_rlae.errors import PolicyError
from hf_rlae.policies import MemberObservation
from tests.support.policies import random_state


def state_of(*logits, read_next=None):
    seen = [MemberObservation(entry, None) for entry in logits]
    rows = len(logits[0])
    return PolicyState(
        len(logits),
        torch.zeros(rows, dtype=torch.long),
        torch.device("cpu"),
        lambda: [""] * rows,
        lambda: seen,
        read_next,
    )


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    ruled_out=st.booleans(),
    shift=st.sampled_from([0.0, 300.0, -300.0]),
)
def test_summaries(rows, sizes, seed, dtype, ruled_out, shift):
    """Law: entropies, margins and best log-probabilities are those of the full distributions in double precision."""
    torch.manual_seed(seed)
    logits = [(4 * torch.randn(rows, size) + shift).to(dtype) for size in sizes]
    if ruled_out:
        for entry in logits:
            entry[:, 1] = -torch.inf
    state = state_of(*logits)
    for index, entry in enumerate(logits):
        logps = entry.double().log_softmax(-1)
        best = logps.sort(-1, descending=True).values
        entropy = -(logps.exp() * logps.masked_fill(logps == -torch.inf, 0.0)).sum(-1)
        options = {"atol": 2e-4, "rtol": 1e-4, "check_dtype": False}
        torch.testing.assert_close(state.entropies[:, index], entropy, **options)
        torch.testing.assert_close(state.top_logps[:, index], best[:, 0], **options)
        torch.testing.assert_close(state.margins[:, index], (best[:, 0] - best[:, 1]).clamp(max=1e4), **options)
        assert state.entropies.dtype == state.margins.dtype == state.top_logps.dtype == torch.float32


def test_equal_best_tokens_have_no_margin():
    state = state_of(torch.tensor([[1.0, 3.0, 3.0], [5.0, 3.0, 3.0]]), torch.tensor([[0.0, 9.0], [9.0, 0.0]]))
    assert state.margins.tolist() == [[0.0, 9.0], [2.0, 9.0]]
    assert state.agreement[:, 0, 1].tolist() == [1.0, 1.0]


def test_a_member_without_mass_counts_as_uniform():
    """It counts as a member with a uniform distribution, and agrees with no other member."""
    nothing = torch.full((1, 8), -torch.inf)
    state = state_of(nothing, torch.zeros(1, 8), torch.arange(8.0)[None])
    assert state.entropies[0].tolist() == pytest.approx([math.log(8), math.log(8), state.entropies[0, 2].item()])
    assert state.top_logps[0, 0].item() == pytest.approx(-math.log(8))
    assert state.margins[0].tolist() == [0.0, 0.0, 1.0]
    assert state.agreement[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_rows_without_mass_do_not_change_others(value):
    logits = torch.tensor([[0.5, 3.0, 3.0, -torch.inf]] * 3)
    expected = state_of(logits)
    logits[1] = value
    state = state_of(logits)
    assert state.entropies[1].item() == pytest.approx(math.log(4))
    for name in ("entropies", "margins", "top_logps"):
        assert getattr(state, name)[[0, 2]].equal(getattr(expected, name)[[0, 2]])


def test_agreement_of_one_tokenizer():
    """Members agree if their most likely tokens are the same, for any padding of their vocabularies."""
    one, two = torch.zeros(2, 5), torch.zeros(2, 7)
    one[:, 3] = 1.0
    two[0, 3] = 1.0
    two[1, 6] = 1.0
    assert state_of(one, two).agreement.tolist() == [[[1, 1], [1, 1]], [[1, 0], [0, 1]]]


def test_agreement_of_different_tokenizers():
    """Members agree if the next bytes of one are a prefix of the other's, or if both end the text."""
    pieces = [b" th", b" the", b" dog", b"", b"", None]
    logits = [torch.zeros(1, 4)] * len(pieces)
    asked = []

    def read_next(seen, best):
        asked.append((len(seen), best.tolist()))
        return [pieces]

    agreement = state_of(*logits, read_next=read_next).agreement[0]
    expected = torch.eye(6)
    expected[0, 1] = expected[1, 0] = expected[3, 4] = expected[4, 3] = 1.0
    assert torch.equal(agreement, expected)
    assert asked == [(6, [[0] * 6])]


def test_everything_is_computed_once_and_only_when_read():
    calls = []

    def observe():
        calls.append("observe")
        return [MemberObservation(torch.randn(2, 9), None)] * 2

    state = PolicyState(2, torch.zeros(2, dtype=torch.long), torch.device("cpu"), lambda: calls.append("text"), observe)
    assert calls == []
    for _ in range(2):
        assert state.entropies.shape == state.margins.shape == (2, 2)
        assert state.agreement.shape == (2, 2, 2)
    assert calls == ["observe"]


def test_a_state_that_cannot_score_prompts():
    with pytest.raises(PolicyError, match="score_prompts"):
        random_state().prompt_logps  # noqa: B018
