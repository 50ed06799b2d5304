"""A member whose weights are not finite is refused when it is loaded, and no other."""

from __future__ import annotations

import math

import pytest
import torch

from hf_rlae import Member
from hf_rlae.errors import MemberError
from tests.support.models import pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_is_found(value, dtype):
    model, tokenizer = pair("llama", num_hidden_layers=1)
    with torch.no_grad():
        model.to(dtype).model.layers[0].mlp.up_proj.weight[-1, -1] = value
    with pytest.raises(MemberError, match=r"NaN or infinite values in model\.layers\.0\.mlp\.up_proj\.weight"):
        Member(model, tokenizer)


def test_the_largest_finite_values_are_no_fault():
    model, tokenizer = pair("llama", num_hidden_layers=1)
    limits = torch.finfo(torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, :2] = torch.tensor([limits.max, limits.min])
    Member(model, tokenizer)
