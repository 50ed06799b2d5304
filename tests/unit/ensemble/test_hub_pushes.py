"""Ensembles and policies are pushed to the Hub and pulled from it, over HTTP, with nothing private in any byte."""

from __future__ import annotations

import getpass
import io
import itertools
import json
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitInfo, HfApi

from hf_rlae import ConfigError, EnsembleForCausalLM, PolicyConfig, PolicyModel, StaticPolicy
from tests.support.ensembles import TEXTS, encode
from tests.support.models import pair
from tests.support.policies import encoder
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe, characters

CANARY = "canary-of-alice"


@pytest.fixture
def members(hub, tmp_path, monkeypatch):
    """A function that saves members in private folders or pushes them; the environment has secrets."""
    for name in ("USER", "LOGNAME", "WANDB_API_KEY", "HOSTNAME"):
        monkeypatch.setenv(name, f"{name}-{CANARY}")
    monkeypatch.setattr(socket, "gethostname", lambda: f"host-{CANARY}")
    monkeypatch.chdir((tmp_path / f"work-{CANARY}").mkdir() or tmp_path / f"work-{CANARY}")

    def make(where, tokenizers):
        made = []
        for index, build in enumerate(tokenizers):
            model, tokenizer = pair("llama", index, build(), num_hidden_layers=1)
            if where == "objects":
                made.append((model, tokenizer))
                continue
            folder = tmp_path / CANARY / "ab"[index]
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if where == "hub":
                hub.add_repo(f"me/{'ab'[index]}", folder)
            made.append(f"me/{'ab'[index]}" if where == "hub" else str(folder))
        return made

    return make


def learned(ensemble):
    return PolicyModel(PolicyConfig.for_members(ensemble.members, hidden_size=8))


def reading(ensemble, tmp_path):
    """A policy whose encoder was loaded from a private folder."""
    model, tokenizer = encoder()
    model.save_pretrained(tmp_path / CANARY / "encoder")
    tokenizer.save_pretrained(tmp_path / CANARY / "encoder")
    return PolicyModel.from_encoder(str(tmp_path / CANARY / "encoder"), ensemble.members, observation="both")


def assert_nothing_private(hub, tmp_path):
    sent = hub.pushed()
    for data in [sent, *_unpacked(hub)]:
        for secret in (CANARY, str(tmp_path), str(Path.home()), hub.token, getpass.getuser() + "@"):
            assert secret.encode() not in data, secret


def _unpacked(hub):
    """The members of pushed archives."""
    for key in hub.repositories:
        for data in hub.files(key[1], repo_type=key[0]).values():
            if zipfile.is_zipfile(io.BytesIO(data)):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    yield from (archive.read(name) for name in archive.namelist())


SHARED, DIFFERENT = (byte_level_bpe, byte_level_bpe), (characters, byte_level_bpe)


FEW = [
    ("hub", SHARED, "learned"),
    ("hub", DIFFERENT, "reading"),
    ("folders", DIFFERENT, "static"),
    ("objects", SHARED, "none"),
]
KINDS = itertools.product(("hub", "folders", "objects"), (SHARED, DIFFERENT), ("none", "static", "learned", "reading"))


@pytest.mark.parametrize(("where", "tokenizers", "policy"), [*FEW, *slow(*(kind for kind in KINDS if kind not in FEW))])
def test_an_ensemble_is_pushed_and_pulled(hub, members, tmp_path, tokenizers, where, policy):
    ensemble = EnsembleForCausalLM.from_members(members(where, tokenizers), span_length=3, min_weight=0.01)
    made = {"none": lambda: None, "static": lambda: StaticPolicy([0.3, 0.7]), "learned": lambda: learned(ensemble),
            "reading": lambda: reading(ensemble, tmp_path)}  # fmt: skip
    ensemble.set_policy(made[policy]())
    ensemble.generation_config.max_new_tokens = 5
    answer = ensemble.push_to_hub("me/ensemble", save_members=where != "hub")
    assert isinstance(answer, CommitInfo)
    assert answer.oid == hub.commit("me/ensemble")
    files = hub.files("me/ensemble")
    config = json.loads(files["config.json"])
    if where == "hub":
        assert config["members"] == ["me/a", "me/b"]
        assert config["revisions"] == [hub.commit("me/a"), hub.commit("me/b")]
        weights = {"policy/model.safetensors"} if policy in ("learned", "reading") else set()
        assert {path for path in files if path.endswith("safetensors")} == weights
    assert (config["span_length"], config["min_weight"], len(config["vocabulary_hashes"])) == (3, 0.01, 2)
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert "README.md" in files
    assert_nothing_private(hub, tmp_path)
    loaded = EnsembleForCausalLM.from_pretrained("me/ensemble")
    inputs = encode(TEXTS[0], tokenizer=ensemble.tokenizer)
    torch.testing.assert_close(loaded(**inputs).logits, ensemble(**inputs).logits)
    assert torch.equal(loaded.generate(**inputs), ensemble.generate(**inputs))
    assert loaded.generation_config.max_new_tokens == 5


def test_options_of_a_push(hub, members):
    ensemble = EnsembleForCausalLM.from_members(members("hub", SHARED))
    api = HfApi()
    ensemble.push_to_hub("ensemble", private=True, commit_message="first", tags=["mine"])
    assert hub.repository("me/ensemble").private
    assert api.list_repo_commits("me/ensemble")[0].title == "first"
    assert "mine" in api.model_info("me/ensemble").tags
    main = hub.commit("me/ensemble")
    ensemble.push_to_hub("me/ensemble", revision="v2", commit_description="more")
    answer = ensemble.push_to_hub("me/ensemble", create_pr=True, commit_message="a request")
    assert (hub.commit("me/ensemble"), answer.pr_revision) == (main, "refs/pr/1")
    assert hub.commit("me/ensemble", "v2") != main
    for revision in ("v2", answer.pr_revision, main):
        assert EnsembleForCausalLM.from_pretrained("me/ensemble", revision=revision).config.members == ["me/a", "me/b"]
    with pytest.raises(ConfigError, match=r"commit_mesage is not an option of .* did you mean 'commit_message'"):
        ensemble.push_to_hub("me/other", commit_mesage="first")
    assert ("model", "me/other") not in hub.repositories


def test_save_pretrained_pushes_too(hub, members, tmp_path):
    ensemble = EnsembleForCausalLM.from_members(members("hub", SHARED))
    options = {"private": True, "commit_message": "first"}
    ensemble.save_pretrained(tmp_path / "folder", push_to_hub=True, repo_id="me/one", **options)
    ensemble.push_to_hub("me/two")
    assert [hub.repository(f"me/{name}").private for name in ("one", "two")] == [True, False]
    assert HfApi().list_repo_commits("me/one")[0].title == "first"
    one, two = hub.files("me/one"), hub.files("me/two")
    assert one.keys() == two.keys()
    assert one["config.json"] == two["config.json"] == (tmp_path / "folder" / "config.json").read_bytes()


def test_what_an_ensemble_no_longer_has_is_removed(hub, members):
    """Files of a user stay."""
    ensemble = EnsembleForCausalLM.from_members(members("folders", SHARED))
    ensemble.set_policy(learned(ensemble))
    ensemble.push_to_hub("me/ensemble", save_members=True)
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id="me/ensemble")
    again = EnsembleForCausalLM.from_members(members("hub", SHARED), "uniform")
    again.push_to_hub("me/ensemble")
    assert not [path for path in hub.files("me/ensemble") if path.startswith(("policy/", "members/"))]
    assert "notes.txt" in hub.files("me/ensemble")


@pytest.mark.parametrize("where", ["folders", "objects"])
def test_members_of_this_machine_are_refused(hub, members, tmp_path, where):
    """Before the repository is made; the message says how to push them."""
    ensemble = EnsembleForCausalLM.from_members(members(where, SHARED))
    for push in (
        lambda: ensemble.push_to_hub("me/ensemble"),
        lambda: ensemble.save_pretrained(tmp_path / "ensemble", push_to_hub=True, repo_id="me/ensemble"),
    ):
        with pytest.raises(ConfigError, match=r"are folders or objects of this machine.* pass save_members=True"):
            push()
    assert not hub.repositories
    assert not (tmp_path / "ensemble").exists()
    assert not [request for request in hub.requests if request.method == "POST"]


def test_members_that_the_hub_does_not_have(hub, members):
    """A model in memory may bear the name of a repository that is not there."""
    model, tokenizer = members("objects", SHARED)[0]
    model.name_or_path = model.config._name_or_path = "me/never-pushed"
    ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)])
    with pytest.raises(ConfigError, match=r"member 0 \(me/never-pushed\) is not known to be on the Hub"):
        ensemble.push_to_hub("me/ensemble")
    assert not hub.repositories
    commit = hub.add_repo("me/never-pushed", {"config.json": "{}"})
    ensemble.push_to_hub("me/ensemble")
    assert json.loads(hub.files("me/ensemble")["config.json"])["revisions"] == [commit]


@pytest.mark.parametrize("kind", ["learned", "reading"])
def test_a_policy_is_pushed_and_pulled(hub, members, tmp_path, kind):
    ensemble = EnsembleForCausalLM.from_members(members("folders", DIFFERENT))
    policy = learned(ensemble) if kind == "learned" else reading(ensemble, tmp_path)
    answer = policy.push_to_hub("me/policy", private=True)
    assert answer.oid == hub.commit("me/policy")
    loaded = PolicyModel.from_pretrained("me/policy")
    for name, value in policy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert (loaded.tokenizer is None) == (kind == "learned")
    policy.requires_grad_(False)
    for parameter in policy.parameters():
        parameter.zero_()
    policy.push_to_hub("me/policy")
    pinned = PolicyModel.from_pretrained("me/policy", revision=answer.oid)
    assert any(bool(parameter.any()) for parameter in pinned.parameters())
    assert not any(bool(parameter.any()) for parameter in PolicyModel.from_pretrained("me/policy").parameters())
    assert_nothing_private(hub, tmp_path)
