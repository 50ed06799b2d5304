"""The recorded log-probabilities of the members."""

from __future__ import annotations

import torch

from hf_rlae.ensemble.trace import MemberScores, Trace


def test_tokens_that_are_taken_back_are_forgotten_and_no_others():
    """Law: `crop(length)` keeps the records of columns below `length`, and drops the others."""
    trace = Trace(enabled=True, member_logps=[(column, torch.full((1, 2), float(column))) for column in range(4, 10)])
    trace.crop(7)
    assert [column for column, _ in trace.member_logps] == [4, 5, 6]
    trace.crop(7)
    assert [column for column, _ in trace.member_logps] == [4, 5, 6]
    trace.crop(6)
    assert [column for column, _ in trace.member_logps] == [4, 5]


def test_rows_that_are_exchanged_before_their_tokens_are_known():
    """Law: the log-probabilities of a token are those of the row that it continues, through any number of exchanges."""
    scores = torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]], [[5.0, 4.0]]])
    log_z = scores.logsumexp(-1)
    trace = Trace(enabled=True, pending=MemberScores(3, [(scores, log_z)], torch.ones(3, 1, 1)))
    trace.reorder(torch.tensor([2, 0, 1]))
    trace.reorder(torch.tensor([1, 1, 0]))  # now the rows 0, 0 and 2 of the scores
    trace.settle(torch.tensor([[7, 7, 7, 7, token] for token in (0, 1, 1)]), 5)
    ((column, logps),) = trace.member_logps
    expected = scores[[0, 0, 2], 0, [0, 1, 1]] - log_z[[0, 0, 2], 0]
    assert column == 4
    torch.testing.assert_close(logps[:, 0], expected)
