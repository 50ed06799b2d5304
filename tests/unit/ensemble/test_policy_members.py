"""The members that a policy was trained with: what its config keeps, and what is said of others."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest

from hf_rlae import ConfigError, EnsembleForCausalLM, PolicyConfig, PolicyModel
from hf_rlae.ensemble.policy_fit import describe_members
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

LOGGER = "hf_rlae.ensemble.policy_fit"


def save_member(folder, seed=0, build=byte_level_bpe):
    model, tokenizer = pair("llama", seed, build(), num_hidden_layers=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def places(tmp_path):
    return [save_member(tmp_path / "private" / "one"), save_member(tmp_path / "private" / "two", 1, raw_bytes)]


def policy_of(places, changes=None):
    """A policy whose config says that it was trained with these members."""
    ensemble = EnsembleForCausalLM.from_members(places)
    config = PolicyConfig.for_members(ensemble.members)
    config.members = describe_members(ensemble)
    for index, fields in (changes or {}).items():
        config.members[index].update(fields)
    return PolicyModel(config)


def test_what_is_kept_of_members(places, tmp_path):
    """The names of folders and not their paths; equal tokenizers have equal hashes."""
    first, second = describe_members(EnsembleForCausalLM.from_members(places))
    assert (first["id"], second["id"], first["commit"]) == ("one", "two", None)
    assert first["vocabulary_hash"] != second["vocabulary_hash"]
    same = [save_member(tmp_path / "same"), places[0]]
    hashes = {entry["vocabulary_hash"] for entry in describe_members(EnsembleForCausalLM.from_members(same))}
    assert hashes == {first["vocabulary_hash"]}
    unnamed = describe_members(EnsembleForCausalLM.from_members([pair("llama", num_hidden_layers=1)]))
    assert unnamed[0]["id"] is None


def test_members_that_are_saved_with_an_ensemble_are_the_same(tmp_path, caplog):
    """Saved, loaded and saved again, their folders keep one name, and nobody is told of other members."""
    places = [save_member(tmp_path / "my model"), save_member(tmp_path / "two", 1, raw_bytes)]
    ensemble = EnsembleForCausalLM.from_members(places, policy_of(places))
    for name in ("first", "second"):
        ensemble.save_pretrained(tmp_path / name, save_members=True)
        ensemble = EnsembleForCausalLM.from_pretrained(tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name / "members").iterdir()) == ["0-my-model", "1-two"]
    copies = [shutil.copytree(place, tmp_path / f"copy{index}") for index, place in enumerate(places)]
    EnsembleForCausalLM.from_members(copies, tmp_path / "first" / "policy")
    assert "trained with other members" not in caplog.text


def test_a_saved_ensemble_writes_them_into_its_policy(places, tmp_path):
    policy = PolicyModel(PolicyConfig.for_members(EnsembleForCausalLM.from_members(places).members))
    ensemble = EnsembleForCausalLM.from_members(places, policy)
    ensemble.save_pretrained(tmp_path / "ensemble")
    text = (tmp_path / "ensemble" / "policy" / "config.json").read_text()
    assert json.loads(text)["members"] == describe_members(ensemble)
    assert "private" not in text
    trained = policy_of(places, {0: {"id": "another"}})
    EnsembleForCausalLM.from_members(places, trained).save_pretrained(tmp_path / "ensemble")
    assert PolicyModel.from_pretrained(tmp_path / "ensemble" / "policy").config.members[0]["id"] == "another"


CHANGES = {
    "nothing": ({}, None),
    "a folder of another name": ({0: {"id": "three"}}, None),
    "a copy of a repository": ({0: {"id": "owner/three"}}, None),
    "a folder of another name, and nothing else is known": (
        {0: {"id": "three", "vocabulary_hash": None}},
        r"of 2 members, 1 ids differ \(member 0 is one, and was three\)",
    ),
    "members in another order": ({0: {"id": "two"}, 1: {"id": "one"}}, "of 2 members, 2 ids differ"),
    "a folder of another name with another vocabulary": (
        {0: {"id": "three"}, 1: {"id": "four", "vocabulary_hash": "0" * 64}},
        r"of 2 members, 1 vocabularies differ; it is used",
    ),
    "a vocabulary": ({1: {"vocabulary_hash": "0" * 64}}, r"of 2 members, 1 vocabularies differ; it is used"),
    "what is not known": ({0: {"id": None, "commit": "a" * 40, "vocabulary_hash": None}}, None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_members_are_told_once(places, caplog, name):
    members, expected = CHANGES[name]
    policy = policy_of(places, members)
    ensemble = EnsembleForCausalLM.from_members(places)
    for use in (lambda: EnsembleForCausalLM.from_members(places, policy), lambda: ensemble.set_policy(policy)):
        caplog.clear()
        use()
        messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
        assert len(messages) == (expected is not None)
        if expected is not None:
            assert re.search(expected, messages[0]), messages


@pytest.mark.parametrize(("old", "new", "is_told"), [("a", "a", False), ("a", "b", True), ("a", None, False)])
def test_commits_of_the_same_repository(places, caplog, old, new, is_told):
    policy = policy_of(places, {0: {"commit": old * 40}})
    ensemble = EnsembleForCausalLM.from_members(places)
    ensemble.members[0].commit = new and new * 40
    with caplog.at_level(logging.WARNING):
        ensemble.set_policy(policy)
    assert ("1 commits differ; it is used" in caplog.text) == is_told


def test_other_tokenizers_of_the_same_widths_are_used(places, tmp_path, caplog):
    """A policy transfers: other members are used, with what they are made for counted."""
    policy = policy_of(places)
    others = [places[0], save_member(tmp_path / "third", 2, sentencepiece_bpe)]
    ensemble = EnsembleForCausalLM.from_members(others, policy)
    assert "of 2 members, 1 vocabularies differ" in caplog.text
    inputs = ensemble.tokenizer(["Once upon"], return_tensors="pt")
    assert ensemble.generate(**inputs, max_new_tokens=2).shape[0] == 1


def test_configs_of_earlier_versions_and_wrong_ones(places, caplog):
    policy = PolicyModel(PolicyConfig(num_members=2, member_hidden_sizes=[32, 32]))
    assert policy.config.members is None
    EnsembleForCausalLM.from_members(places, policy)
    assert not [record for record in caplog.records if record.name == LOGGER]
    for wrong in ([{"id": "a"}], [{"id": 3}, {"id": "b"}]):
        with pytest.raises(ConfigError, match=r"members=\[.* for num_members=2: give one dict per member with id, com"):
            PolicyConfig(num_members=2, members=wrong)


def test_a_policy_without_files_replaces_one_with_files(places, tmp_path):
    EnsembleForCausalLM.from_members(places, policy_of(places)).save_pretrained(tmp_path / "ensemble")
    assert (tmp_path / "ensemble" / "policy").is_dir()
    EnsembleForCausalLM.from_members(places).save_pretrained(tmp_path / "ensemble")
    assert not (tmp_path / "ensemble" / "policy").exists()
