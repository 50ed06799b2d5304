"""The recorded log-probabilities of the members."""

from __future__ import annotations

import torch

from hf_rlae.ensemble.trace import Trace


def test_tokens_that_are_taken_back_are_forgotten_and_no_others():
    """Law: `crop(length)` keeps the records of columns below `length`, and drops the others."""
    trace = Trace(enabled=True, member_logps=[(column, torch.full((1, 2), float(column))) for column in range(4, 10)])
    trace.crop(7)
    assert [column for column, _ in trace.member_logps] == [4, 5, 6]
    trace.crop(7)
    assert [column for column, _ in trace.member_logps] == [4, 5, 6]
    trace.crop(6)
    assert [column for column, _ in trace.member_logps] == [4, 5]
