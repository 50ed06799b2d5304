"""`repr` of ensembles and members is short, and names what a user chose."""

from __future__ import annotations

import pytest

from hf_rlae import EnsembleForCausalLM, EntropyPolicy, PolicyConfig, PolicyModel, StaticPolicy
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes


def by_entropy(state):
    return state.entropies


def test_an_ensemble_and_its_members():
    members = [pair("llama", 0, byte_level_bpe(), num_hidden_layers=1), pair("llama", 1, raw_bytes())]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy([7, 3]), span_length=4)
    head, first, second, policy, settings, tail = repr(ensemble).splitlines()
    assert (head, tail) == ("EnsembleForCausalLM(", ")")
    assert first == f"  {ensemble.members[0]!r},"
    size = sum(parameter.numel() for parameter in members[1][0].parameters())
    assert f"LlamaForCausalLM, {size:,} parameters, {len(members[1][1])} tokens, cpu)," in second
    assert policy == "  policy=StaticPolicy(weights=[0.7, 0.3]),"
    assert settings == f"  span_length=4, mixing='linear', grain='token', vocab_size={ensemble.config.vocab_size},"


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda members: None, "UniformPolicy()"),
        (lambda members: EntropyPolicy(0.5), "EntropyPolicy(temperature=0.5)"),
        (lambda members: by_entropy, "by_entropy()"),
        (lambda members: PolicyModel(PolicyConfig.for_members(members, hidden_size=8)), " parameters)"),
    ],
)
def test_a_policy(make, shown):
    ensemble = EnsembleForCausalLM.from_members([pair("llama", num_hidden_layers=1)])
    ensemble.set_policy(make(ensemble.members))
    (line,) = [line for line in repr(ensemble).splitlines() if line.startswith("  policy=")]
    assert line.endswith(f"{shown},")
