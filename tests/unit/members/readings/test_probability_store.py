"""Where probabilities are kept."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.members.readings import probability_store as pool
from hf_rlae.members.readings.probability_store import ProbabilityPool


@pytest.mark.parametrize("wide", [1, 10**9])
def test_wide_and_narrow_rows_are_kept_alike(monkeypatch, wide):
    monkeypatch.setattr(pool, "WIDE", wide)
    logits = 5 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    kept = ProbabilityPool(40, torch.device("cpu"))
    slots = kept.store(logits, None, {0, 2})
    assert len(set(slots) - {0, 2}) == 3
    torch.testing.assert_close(kept.probs[slots, :-1], logits.softmax(-1))
    torch.testing.assert_close(kept.log_z[slots], logits.logsumexp(-1))
    assert (kept.probs[:, -1] == 0).all()
    assert (kept.probs[0] == 0).all()
