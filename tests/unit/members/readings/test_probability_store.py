"""The store of probabilities."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.members.readings import probability_store
from hf_rlae.members.readings.probability_store import ProbabilityStore


@pytest.mark.parametrize("wide", [1, 10**9])
def test_wide_and_narrow_rows_are_kept_alike(monkeypatch, wide):
    monkeypatch.setattr(probability_store, "WIDE", wide)
    logits = 5 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    kept = ProbabilityStore(40, torch.device("cpu"))
    entries = kept.put(logits, None, {0, 2})
    assert len(set(entries) - {0, 2}) == 3
    torch.testing.assert_close(kept.probs[entries, :-1], logits.softmax(-1))
    torch.testing.assert_close(kept.log_z[entries], logits.logsumexp(-1))
    assert (kept.probs[:, -1] == 0).all()
    assert (kept.probs[0] == 0).all()
