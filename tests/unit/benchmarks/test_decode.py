"""The forward passes that the cost benchmark times."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.benchmarks.decode import forward_passes
from tests.support.models import tiny


@pytest.mark.parametrize("padding", [0, 2])
def test_forward_passes_are_given_what_generate_gives(padding):
    model, steps, calls = tiny("llama", 20), 5, []
    ids = torch.arange(8).reshape(2, 4) + 3
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        calls.append({name: given.get(name) for name in ("attention_mask", "position_ids", "logits_to_keep")})
        calls[-1] |= {"ids": given["input_ids"].shape, "seen": given["past_key_values"].get_seq_length()}

    with torch.inference_mode():
        hook = model.register_forward_pre_hook(note, with_kwargs=True)
        model.generate(input_ids=ids, attention_mask=mask, min_new_tokens=steps, max_new_tokens=steps, pad_token_id=0)
        made = len(list(forward_passes(model, steps, ids, mask)))
        hook.remove()
    assert made == steps
    for expected, found in zip(calls[:steps], calls[steps:], strict=True):
        assert torch.equal(found.pop("position_ids"), expected.pop("position_ids"))
        wanted, own = expected.pop("attention_mask"), found.pop("attention_mask")
        assert own is None if wanted is None else torch.equal(own, wanted)
        assert found == expected
