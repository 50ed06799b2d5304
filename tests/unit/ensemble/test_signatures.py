"""Signatures show every keyword, with its default, in `help` and in notebooks."""

from __future__ import annotations

import inspect

import pytest

from hf_rlae import EnsembleConfig, EnsembleForCausalLM, EnsembleLogitsProcessor
from hf_rlae.ensemble.options import AS_SAVED, BuildOptions, LoadOptions


@pytest.mark.parametrize(
    ("function", "options", "first"),
    [
        (EnsembleForCausalLM.from_members, BuildOptions, ["members", "policy", "weights"]),
        (EnsembleForCausalLM.from_pretrained, LoadOptions, ["pretrained_model_name_or_path", "weights"]),
        (EnsembleLogitsProcessor.from_members, BuildOptions, ["host", "others", "tokenizers", "policy"]),
    ],
)
def test_every_keyword_is_shown(function, options, first):
    parameters = inspect.signature(function).parameters
    assert list(parameters)[: len(first)] == first
    assert set(options.__annotations__) <= set(parameters)
    assert not [one for one in parameters.values() if one.kind is one.VAR_KEYWORD]


def test_the_defaults_are_those_that_hold():
    building = inspect.signature(EnsembleForCausalLM.from_members).parameters
    fields = EnsembleConfig().to_dict()
    for name in ("span_length", "mixing", "grain", "draw", "normalizes", "on_non_finite"):
        assert building[name].default == fields[name]
    assert (building["dtype"].default, building["check_files"].default) == ("auto", True)
    assert building["span_length"].annotation == "int"
    loading = inspect.signature(EnsembleForCausalLM.from_pretrained).parameters
    assert loading["span_length"].default is loading["policy"].default is AS_SAVED
    assert loading["max_members"].default == 64
    assert repr(AS_SAVED) == "<as saved>"
