"""Spans of tokens, and what a policy says of a list of spans."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError
from hf_rlae.objectives import ObjectiveError, scatter_spans, spans_of_tokens


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 4), st.booleans())
@settings(max_examples=40)
def test_spans_of_tokens_by_hand(lengths, span_length, pad_left):
    """Token t of a text belongs to span t // span_length, wherever the padding is."""
    width = max(lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(width - length, width) if pad_left else slice(length)] = 1
    span_index, span_mask = spans_of_tokens(mask, span_length)
    assert span_mask.shape[1] == max(1, -(-width // span_length))
    for row, length in enumerate(lengths):
        assert span_index[row][mask[row] == 1].tolist() == [t // span_length for t in range(length)]
        assert span_index[row][mask[row] == 0].tolist() == [-1] * (width - length)
        spans = -(-length // span_length)
        assert span_mask[row].tolist() == [True] * spans + [False] * (span_mask.shape[1] - spans)


def test_scatter_spans_is_the_inverse_of_choosing():
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    values = torch.randn(5, 2, requires_grad=True)
    scattered = scatter_spans(values, mask)
    assert scattered.shape == (3, 3, 2)
    assert torch.equal(scattered[mask], values)
    assert not bool(scattered[~mask].any())
    factors = torch.randn(3, 3, 2)
    (scattered * factors).sum().backward()
    assert torch.equal(values.grad, factors[mask])


@pytest.mark.parametrize("number", [1, 3])
def test_scatter_spans_counts(number):
    with pytest.raises(ObjectiveError, match=f"values has shape \\({number},.*2 spans"):
        scatter_spans(torch.zeros(number, 4), torch.tensor([[1, 1], [0, 0]]))


def test_bad_input():
    with pytest.raises(ConfigError, match="span_length=0"):
        spans_of_tokens(torch.ones(2, 3), 0)
    with pytest.raises(ObjectiveError, match=r"completion_mask has shape \(3,\)"):
        spans_of_tokens(torch.ones(3), 1)
    with pytest.raises(ObjectiveError, match=r"span_mask has shape \(3,\)"):
        scatter_spans(torch.ones(3), torch.ones(3))
