"""Hostile repositories: refused with their name and the reason before weights are downloaded; nothing of them runs."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import pytest
from safetensors.torch import load_file, save_file

from hf_rlae import EnsembleForCausalLM, MemberError, PolicyConfig, PolicyModel
from hf_rlae.errors import HfRlaeError
from hf_rlae.members import LazyMember, Member
from hf_rlae.members.file_budget import free_memory
from tests.support.models import pair

WEIGHTS = "model.safetensors"
CODE = "import pathlib; pathlib.Path('ran').touch()"
PICKLE = b"cposix\nsystem\n(S'touch ran'\ntR."


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a sound member."""
    folder = tmp_path_factory.mktemp("whole")
    model, tokenizer = pair("llama", num_hidden_layers=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def watched(hub, tmp_path, monkeypatch):
    """Nobody is asked, nothing runs, and nothing is written outside of the cache."""
    place = tmp_path / "deep" / "in" / "here"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    yield
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name in ("ran", "climbed.txt")]
    assert not [path for path in hub.home.parent.rglob("climbed.txt") if hub.cache not in path.parents]


def config(files, **fields):
    return {**files, "config.json": json.dumps({**json.loads(files["config.json"]), **fields}).encode()}


def exploding(files):
    saved = json.loads(files["tokenizer.json"])
    pattern = {"Regex": r"(?:\w+\s?)+$"}
    saved["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {**files, "tokenizer.json": json.dumps(saved).encode()}


def shards(second):
    """The weights in an index that names a second file elsewhere."""

    def spoil(files):
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-1.safetensors", "model.norm.weight": second}}
        rest = {name: data for name, data in files.items() if name != WEIGHTS}
        return {
            **rest,
            "model-1.safetensors": files[WEIGHTS],
            "model.safetensors.index.json": json.dumps(index).encode(),
        }

    return spoil


CUSTOM = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
MEMBERS = {
    # name: (what is changed, words of the message, whether the weights may be downloaded first)
    "code of its own": (
        lambda f: {**config(f, model_type="custom", auto_map=CUSTOM), "code.py": CODE.encode()},
        "trust_remote_code=True",
        False,
    ),
    "a tokenizer of its own": (
        lambda f: {
            **f,
            "code.py": CODE.encode(),
            "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["code.T", null]}, "tokenizer_class": "T"}',
        },
        "trust_remote_code=True|tokenizer",
        False,
    ),
    "a tokenizer that raises": (exploding, "tokenizer of member me/bad fails: PanicException", False),
    "a tokenizer that is no JSON": (lambda f: {**f, "tokenizer.json": b"{"}, "member me/bad", False),
    "a config that is no JSON": (lambda f: {**f, "config.json": b"{"}, "member me/bad", False),
    "more layers than any model": (lambda f: config(f, num_hidden_layers=10**12), "declares num_hidden_layers", False),
    "more layers than its files hold": (lambda f: config(f, num_hidden_layers=5000), "weight files hold only", False),
    "wider than its files": (lambda f: config(f, hidden_size=2**20), "weight files hold only", False),
    "shards above": (shards("../climbed.txt"), "index.json names '../climbed.txt', a file outside", False),
    "shards by an absolute path": (shards("/etc/passwd"), "index.json names '/etc/passwd', a file outside", False),
    "an ensemble": (lambda f: config(f, model_type="hf_rlae_ensemble"), "a member is one language model", False),
    "a policy": (lambda f: config(f, model_type="hf_rlae_policy"), "a member is one language model", False),
    "a pickle that runs code": (
        lambda f: {**{name: data for name, data in f.items() if name != WEIGHTS}, "pytorch_model.bin": PICKLE},
        "member me/bad cannot be loaded",
        True,  # a pickle of tensors alone is loaded, and what is in it shows when it is read
    ),
    "an adapter of itself": (
        lambda f: {
            "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "me/bad"}).encode(),
            **{name: data for name, data in f.items() if name.startswith("tokenizer")},
        },
        "me/bad",
        False,
    ),
    "an adapter of a folder here": (
        lambda f: {
            "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}).encode(),
            **{name: data for name, data in f.items() if name.startswith("tokenizer")},
        },
        "me/bad",
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Member, LazyMember])
@pytest.mark.parametrize("name", MEMBERS)
def test_members(hub, whole, name, kind):
    spoil, words, may_download = MEMBERS[name]
    hub.add_repo("me/bad", spoil(whole))
    with pytest.raises(HfRlaeError, match=words) as caught:
        kind.load("me/bad").prepare()
    assert "me/bad" in str(caught.value)
    assert may_download or not [path for path in hub.downloads() if path.endswith((".safetensors", ".bin"))]


def test_tensors_that_do_not_fit(hub, whole, tmp_path):
    """What only the weights can tell is found after they are downloaded."""
    for name, change, words in (
        ("missing", lambda t: t.pop("lm_head.weight"), "me/bad is not whole: its files have no lm_head.weight"),
        ("reshaped", lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:3]}), "lm_head.weight has the shape"),
    ):
        (tmp_path / name).write_bytes(whole[WEIGHTS])
        tensors = load_file(tmp_path / name)
        change(tensors)
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
        hub.add_repo("me/bad", {**whole, WEIGHTS: (tmp_path / name).read_bytes()})
        with pytest.raises(MemberError, match=words):
            Member.load("me/bad")


def test_sizes_of_files(hub, whole):
    """A model that the memory cannot hold is not downloaded."""
    big = config(whole, hidden_size=65536, intermediate_size=2**18, num_hidden_layers=80, head_dim=128)
    hub.add_repo("me/big", big, sizes={WEIGHTS: 10**13})
    with pytest.raises(MemberError, match=r"member me/big cannot .* weight files have 10000.0 GB, and .* free"):
        Member.load("me/big")
    hub.add_repo("me/big", big, sizes={WEIGHTS: free_memory()})
    with pytest.raises(MemberError, match=r"member me/big cannot be loaded: it needs more than .* of memory"):
        Member.load("me/big")
    assert WEIGHTS not in hub.downloads()


def ensemble_of(**fields):
    return {"config.json": json.dumps({"model_type": "hf_rlae_ensemble", **fields}).encode()}


ENSEMBLES = {
    "members that climb out": ({"members": ["../../climbed"]}, "member 0 .* pass `members="),
    "members by absolute paths": ({"members": ["/etc"]}, "member 0 .* is outside of"),
    "a folder here that shadows an id": ({"members": ["me/shadowed"]}, "the working directory has a folder"),
    "itself": ({"members": ["me/bad"]}, "me/bad.*a member is one language model"),
    "itself, as a folder": ({"members": ["./."]}, "member 0"),
    "another ensemble": ({"members": ["me/other"]}, "me/other.*a member is one language model"),
    "more members than anybody has": ({"members": ["me/good"] * 65}, "max_members=65"),
    "other counts": ({"members": ["me/good"], "revisions": ["main", "main"]}, "revisions has 2 entries"),
    "hashes of no kind": ({"members": ["me/good"], "vocabulary_hashes": [3]}, "vocabulary_hashes"),
    "another vocabulary": ({"members": ["me/good"], "vocabulary_hashes": ["0" * 64]}, "stand for other text"),
    "a policy of another kind": ({"members": ["me/good"], "policy": {"model_type": "custom"}}, "model_type='custom'"),
    "a policy that is a model": ({"members": ["me/good"], "policy": {"model_type": "llama"}}, "is no policy"),
    "a policy that is an ensemble": ({"members": ["me/good"], "policy": {"model_type": "hf_rlae_ensemble"}}, "policy"),
    "a revision that is not there": ({"members": ["me/good"], "revisions": ["v9"]}, "v9 is not a valid git identifier"),
    "code of its own": ({"members": ["me/custom"], "auto_map": CUSTOM}, "trust_remote_code"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles(hub, whole, name):
    fields, words = ENSEMBLES[name]
    os.makedirs("me/shadowed")
    hub.add_repo("me/good", whole)
    hub.add_repo("me/custom", {**config(whole, model_type="custom", auto_map=CUSTOM), "code.py": CODE})
    hub.add_repo("me/other", ensemble_of(members=["me/good"]))
    hub.add_repo("me/bad", {**ensemble_of(**fields), "code.py": CODE})
    with pytest.raises(HfRlaeError, match=words):
        EnsembleForCausalLM.from_pretrained("me/bad")
    assert not [path for path in hub.downloads() if path.endswith(".safetensors")]


@pytest.mark.parametrize("path", ["members/../../../../climbed.txt", "/climbed.txt", "members/a/..\\..\\climbed.txt"])
def test_names_that_climb_out(hub, whole, path):
    """Files of an ensemble with its members; see `watched`."""
    files = {f"members/a/{name}": data for name, data in whole.items()}
    hub.add_repo("me/bad", {**ensemble_of(members=["./members/a"]), **files, path: b"climbed"})
    with suppress(HfRlaeError, ValueError):  # or the name is skipped, and the sound member is loaded
        EnsembleForCausalLM.from_pretrained("me/bad")
    assert hub.downloads("me/bad")


POLICIES = {
    "code of its own": ({"model_type": "custom", "auto_map": {"AutoModel": "code.M", "AutoConfig": "code.C"}}, "."),
    "more members than anybody has": ({"num_members": 10**12, "member_hidden_sizes": None, "observation": "text"}, "."),
    "heads larger than any": ({"hidden_size": 10**9}, "hold only|memory"),
    "another model": ({"model_type": "llama"}, "."),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies(hub, name, tmp_path):
    fields, words = POLICIES[name]
    PolicyModel(PolicyConfig(member_hidden_sizes=[32, 32], hidden_size=8)).save_pretrained(tmp_path / "policy")
    files = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    hub.add_repo("me/bad", {**config(files, **fields), "code.py": CODE}, sizes={WEIGHTS: 10**13})
    with pytest.raises(HfRlaeError, match=words) as caught:
        EnsembleForCausalLM.from_members([pair(), pair(seed=1)], policy="me/bad")
    assert "me/bad" in str(caught.value)
    assert not [path for path in hub.downloads() if path.endswith(".safetensors")]
