"""The KL of a model to its base over the vocabulary, without all logits at once."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.trainers.token_ppo import full_kl
from tests.support.models import ARCHITECTURES, RECURRENT, pair, with_adapters


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in RECURRENT])
def test_of_every_architecture_in_groups_of_rows(monkeypatch, architecture):
    """As from all logits of the two models, whatever their heads do to logits."""
    torch.manual_seed(0)
    model = with_adapters(pair(architecture)[0])
    ids = torch.randint(5, 100, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    tokens = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask).logits / 0.7
        with model.disable_adapter():
            base = model(input_ids=ids, attention_mask=mask).logits / 0.7
    expected = (
        torch.nn.functional.kl_div(base.log_softmax(-1), own.log_softmax(-1), log_target=True, reduction="none").sum(
            -1
        )[:, 3:6]
        * tokens
    )
    assert expected[0].min() > 0.001
    for most in (1, 10**9):  # rows one by one, and all at once
        monkeypatch.setattr(full_kl, "MAX_LOGITS", most)
        found = full_kl.full_kls_of(model, ids, mask, tokens, temperature=0.7)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
