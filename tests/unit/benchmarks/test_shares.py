"""Bytes per token and shares of bytes, as `tests.benchmarks.shares` counts them."""

from __future__ import annotations

import pytest

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from tests.benchmarks.shares import written
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes

PROMPTS = ["Once upon a time", "The 3 big"]
OPTIONS = {"do_sample": True, "top_k": 0}


def ensemble_of(first: float):
    members = [pair("llama", 0, byte_level_bpe()), pair("gpt2", 1, raw_bytes())]
    return EnsembleForCausalLM.from_members(members, StaticPolicy([first, 1 - first]))


def test_all_weight_is_the_whole_share():
    length, share = written(ensemble_of(1.0), PROMPTS, 20, **OPTIONS)
    assert share == 1.0
    assert length > 1.0
    assert written(ensemble_of(0.0), PROMPTS, 20, **OPTIONS) == (1.0, 0.0)


def test_twins_share_by_their_weights():
    """The same model twice, beside a third member without weight that has another tokenizer."""
    twin = pair("llama", 0, byte_level_bpe())
    members = [twin, twin, pair("gpt2", 1, raw_bytes())]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy([0.3, 0.7, 0.0]))
    assert written(ensemble, PROMPTS, 20, **OPTIONS)[1] == pytest.approx(0.3, abs=1e-3)
