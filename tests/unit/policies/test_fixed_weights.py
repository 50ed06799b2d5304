"""`weights=[...]` in place of a policy, and what the config of an ensemble says of the policy."""

from __future__ import annotations

import pytest

from hf_rlae import (
    ConfigError,
    EnsembleConfig,
    EnsembleForCausalLM,
    EnsembleLogitsProcessor,
    EntropyPolicy,
    PolicyConfig,
    PolicyModel,
    StaticPolicy,
    UniformPolicy,
)
from tests.support.models import pairs

STATIC = {"name": "static", "weights": [0.75, 0.25]}


def build(policy=None, **options):
    return EnsembleForCausalLM.from_members(pairs(["llama", "gpt2"], num_hidden_layers=1), policy, **options)


def learned(ensemble):
    return PolicyModel(PolicyConfig.for_members(ensemble.members, hidden_size=8))


def test_weights_are_a_static_policy():
    ensemble = build(weights=[3, 1])
    assert isinstance(ensemble.policy, StaticPolicy)
    assert ensemble.config.policy == STATIC


def test_they_are_saved_and_loaded_and_replaced(tmp_path):
    build(weights=(3, 1)).save_pretrained(tmp_path, save_members=True)
    again = EnsembleForCausalLM.from_pretrained(tmp_path)
    assert again.policy.weights == [0.75, 0.25]
    assert again.config.policy == EnsembleConfig.from_pretrained(tmp_path).policy == STATIC
    other = EnsembleForCausalLM.from_pretrained(tmp_path, weights=[0, 1])
    assert other.policy.weights == other.config.policy["weights"] == [0, 1]


def test_the_processor_takes_them():
    host, other = pairs(["llama", "gpt2"], num_hidden_layers=1)
    processor = EnsembleLogitsProcessor.from_members(host[0], [other], [host[1], None], weights=[3, 1])
    assert processor.ensemble.config.policy == STATIC


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, 2, 3]}, "has 3 entries for 2 members; give one per member"),
        ({"weights": [1]}, "has 1 entries for 2 members"),
        ({"weights": [1, -1]}, r"weights=\[1, -1\]: give a list .*at least 0"),
        ({"weights": [0, 0]}, "at least one above 0"),
        ({"weights": []}, "one number per member"),
        ({"weights": "0.7,0.3"}, "weights='0.7,0.3': give a list"),
        ({"weights": [1, 2], "policy": "entropy"}, "beside a policy: both give the weights; leave one of them out"),
        ({"weights": [1, 2], "policy": StaticPolicy([1, 2])}, "beside a policy"),
        ({"weights": [1, 2], "policy_revision": "main"}, "policy_revision='main' is for a policy on the Hub"),
        ({"weight": [1, 2]}, "weight is not an option of an ensemble: did you mean 'weights'"),
    ],
)
def test_weights_that_cannot_be_meant(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(**options)
    if "weight" not in options:
        build().save_pretrained(tmp_path, save_members=True)
        with pytest.raises(ConfigError, match=message):
            EnsembleForCausalLM.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize(
    ("make", "entry"),
    [
        (lambda ensemble: None, {"name": "uniform"}),
        (lambda ensemble: "entropy", {"name": "entropy", "temperature": 1.0}),
        (lambda ensemble: StaticPolicy([3, 1]), STATIC),
        (learned, {"model_type": "hf_rlae_policy"}),
        (lambda ensemble: lambda state: state.entropies, None),  # it cannot be saved
    ],
    ids=["none", "by name", "an object", "learned", "a function"],
)
def test_the_config_says_which_policy_there_is(make, entry):
    ensemble = build(weights=[1, 9])
    ensemble.set_policy(make(ensemble))
    assert ensemble.config.policy == entry


def test_the_config_of_an_ensemble_may_name_the_policy():
    members = build().members
    ensemble = EnsembleForCausalLM(EnsembleConfig(policy=STATIC), members)
    assert ensemble.policy.weights == [0.75, 0.25]
    given = EnsembleForCausalLM(EnsembleConfig(policy=STATIC), members, EntropyPolicy())
    assert isinstance(given.policy, EntropyPolicy)
    with_files = EnsembleForCausalLM(EnsembleConfig(policy={"model_type": "hf_rlae_policy"}), members)
    assert isinstance(with_files.policy, UniformPolicy)
