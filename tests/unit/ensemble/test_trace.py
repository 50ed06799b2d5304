"""What is recorded of the members' log-probabilities."""

from __future__ import annotations

import torch

from hf_rlae.ensemble.trace import Trace


def test_tokens_that_are_taken_back_are_forgotten_and_no_others():
    """Law: after `crop(length)` the tokens of the columns below `length` are on record, and none from there on."""
    trace = Trace(enabled=True, member_logps=[(column, torch.full((1, 2), float(column))) for column in range(4, 10)])
    trace.crop(7)
    assert [column for column, _ in trace.member_logps] == [4, 5, 6]
    trace.crop(7)
    assert [column for column, _ in trace.member_logps] == [4, 5, 6]
    trace.crop(6)
    assert [column for column, _ in trace.member_logps] == [4, 5]
