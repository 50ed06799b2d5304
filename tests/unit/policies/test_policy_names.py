"""Policies by name: what strings mean where a policy is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from hf_rlae import (
    ConfigError,
    EnsembleForCausalLM,
    EnsembleLogitsProcessor,
    EntropyPolicy,
    PolicyConfig,
    PolicyError,
    PolicyModel,
    StaticPolicy,
    UniformPolicy,
)
from hf_rlae.policies import loading as policy_loading
from hf_rlae.policies import resolve_policy
from tests.support.models import pairs
from tests.support.policies import assert_same_parameters


def members():
    return pairs(["llama", "gpt2"], num_hidden_layers=1)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved policy in the folder `mine` of the working directory."""
    monkeypatch.chdir(tmp_path)
    ensemble = EnsembleForCausalLM.from_members(members())
    policy = PolicyModel(PolicyConfig.for_members(ensemble.members))
    policy.save_pretrained("mine")
    return policy


def test_registered_names():
    ensemble = EnsembleForCausalLM.from_members(members(), policy="entropy")
    assert isinstance(ensemble.policy, EntropyPolicy)
    ensemble.set_policy("uniform")
    assert isinstance(ensemble.policy, UniformPolicy)
    host, other = members()
    processor = EnsembleLogitsProcessor.from_members(host[0], [other[0]], [host[1], other[1]], policy="entropy")
    assert isinstance(processor.ensemble.policy, EntropyPolicy)


@pytest.mark.parametrize("given", ["mine", "./mine", Path("mine")])
def test_folders(saved, given):
    """A folder needs no slash, and may be a `Path`."""
    ensemble = EnsembleForCausalLM.from_members(members(), policy=given)
    assert_same_parameters(ensemble.policy, saved)
    assert not ensemble.policy.training
    ensemble.set_policy(None)
    ensemble.set_policy(given)
    assert_same_parameters(ensemble.policy, saved)


@pytest.mark.parametrize("policy", ["learned", "by name"])
def test_the_policy_of_a_saved_ensemble(saved, tmp_path, policy):
    given = saved if policy == "learned" else StaticPolicy([3, 1])
    EnsembleForCausalLM.from_members(members(), given).save_pretrained("whole", save_members=True)
    again = resolve_policy("whole")
    if policy == "learned":
        assert_same_parameters(again, saved)
    else:
        assert again.weights == [0.75, 0.25]


def test_a_policy_in_place_of_the_saved_one(saved):
    EnsembleForCausalLM.from_members(members()).save_pretrained("whole", save_members=True)
    assert_same_parameters(EnsembleForCausalLM.from_pretrained("whole", policy="./mine").policy, saved)
    assert isinstance(EnsembleForCausalLM.from_pretrained("whole", policy="entropy").policy, EntropyPolicy)


@pytest.mark.parametrize(
    ("given", "options", "source", "revision"),
    [
        ("user/repo", {}, "user/repo", None),
        ("user/repo@v1.0", {}, "user/repo", "v1.0"),
        ("user/repo", {"policy_revision": "a" * 40}, "user/repo", "a" * 40),
        ("user/repo@main", {"policy_revision": "main"}, "user/repo", "main"),
    ],
)
def test_what_is_asked_of_the_hub(monkeypatch, given, options, source, revision):
    asked = []
    monkeypatch.setattr(policy_loading, "_from_files", lambda *args: asked.append(args) or UniformPolicy())
    EnsembleForCausalLM.from_members(members(), policy=given, **options)
    assert [(name, own["revision"]) for name, own in asked] == [(source, revision)]


def clash():
    Path("uniform").mkdir()
    return "uniform"


def encoder_folder():
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained("encoder")
    Path("encoder/model.safetensors").unlink()  # the refusal reads the config alone
    return "encoder"


def unknown_kind():
    Path("other").mkdir()
    Path("other/config.json").write_text(json.dumps({"model_type": "gated_policy"}))
    return "./other"


def folder_like_an_id():
    Path("user/repo").mkdir(parents=True)
    return "user/repo@main"


REFUSED = {
    "a misspelt name": ("unifrom", {}, ConfigError, "did you mean 'uniform'"),
    "an id without an owner": ("my-policy", {}, ConfigError, "Hub id of the form 'user/repo'"),
    "a name that needs weights": ("static", {}, ConfigError, r"policy='static' needs weights: give weights=\[...\]"),
    "a name of the command line": ("demo:shared", {}, ConfigError, r"in Python, give load_demo_policy\('shared'\)"),
    "a name and a folder": (clash, {}, ConfigError, r"give './uniform' for the folder"),
    "no such folder": ("./nothing", {}, ConfigError, "no such folder"),
    "no such path": (Path("a/b"), {}, ConfigError, "no such folder"),
    "a revision of a name": ("uniform", {"policy_revision": "main"}, ConfigError, "for a policy on the Hub"),
    "a revision of a folder": ("mine", {"policy_revision": "main"}, ConfigError, "for a policy on the Hub"),
    "a revision of an object": (UniformPolicy(), {"policy_revision": "main"}, ConfigError, "for a policy on the Hub"),
    "two revisions": ("user/repo@a", {"policy_revision": "b"}, ConfigError, "give the revision once"),
    "a folder that hides an id": (folder_like_an_id, {}, ConfigError, "folder user/repo, which has no revisions"),
    "an encoder": (encoder_folder, {}, PolicyError, r"is no policy but a model \(model_type='bert'\)"),
    "an unknown kind": (unknown_kind, {}, ConfigError, "does not know its model_type='gated_policy': import the"),
    "a folder without a policy": (
        lambda: Path("empty").mkdir() or "./empty",
        {},
        PolicyError,
        "no config.json with a model_type",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_members_are_loaded(saved, name):
    given, options, error, message = REFUSED[name]
    given = given() if callable(given) and not isinstance(given, UniformPolicy) else given
    with pytest.raises(error, match=message):
        EnsembleForCausalLM.from_members(["./no-member"], policy=given, **options)
