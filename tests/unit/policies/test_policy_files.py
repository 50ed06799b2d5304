"""Folders that hold no whole policy or encoder: each is refused by name."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertModel

from hf_rlae import ConfigError, PolicyConfig, PolicyError, PolicyModel
from tests.support.models import pair
from tests.support.policies import encoder

LOADERS = {
    "PolicyModel": PolicyModel.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
}


@pytest.fixture
def folder(tmp_path):
    model, tokenizer = encoder()
    PolicyModel.from_encoder((model, tokenizer), [pair()] * 2, observation="both").save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder, within=None, **fields):
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    (saved if within is None else saved[within]).update(fields)
    path.write_text(json.dumps(saved))


def first_of_heads(tensors):
    return next(name for name in sorted(tensors) if name.startswith("heads."))


NOT_WHOLE = {
    "a tensor of the heads": (lambda f: change_tensors(f, lambda t: t.pop(first_of_heads(t))), "have no heads"),
    "a tensor of the encoder": (
        lambda f: change_tensors(f, lambda t: t.pop("encoder.encoder.layer.0.output.dense.weight")),
        "have no encoder.encoder.layer.0.output.dense.weight",
    ),
    "no tensors": (lambda f: change_tensors(f, lambda t: t.clear()), "hold only 40 bytes"),
    "another shape": (
        lambda f: change_tensors(f, lambda t: t.update({first_of_heads(t): torch.zeros(7)})),
        r"heads.* has the shape \(7,\) in its files",
    ),
    "NaN": (lambda f: change_tensors(f, lambda t: t[first_of_heads(t)].fill_(float("nan"))), "NaN .* in heads"),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 10**6), "cannot be loaded"),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("tokenizer*")], "cannot be loaded"),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_policies_that_are_not_whole(folder, name):
    spoil, message = NOT_WHOLE[name]
    spoil(folder)
    with pytest.raises(PolicyError, match=f"policy {folder}.*{message}"):
        PolicyModel.from_pretrained(folder)


TOO_MUCH = {
    "members": {"num_members": 10**7, "member_hidden_sizes": None, "observation": "text"},
    "width": {"hidden_size": 10**6},
    "layers of the encoder": {"within": "encoder_config", "num_hidden_layers": 4000},
    "layers without an end": {"within": "encoder_config", "num_hidden_layers": 10**9},
    "vocabulary of the encoder": {"within": "encoder_config", "vocab_size": 10**9},
}
"""Changes of a config that make its policy far larger than the files."""


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", TOO_MUCH)
def test_configs_that_declare_more_than_the_files_hold(folder, name, loader):
    change_config(folder, **TOO_MUCH[name])
    start = time.thread_time()
    with pytest.raises(PolicyError, match=r"config.* declares .* weight files hold only \d\.\d MB"):
        LOADERS[loader](folder)
    assert time.thread_time() - start < 5  # in full it would take minutes


def test_loading_info_is_that_of_transformers(folder):
    change_tensors(folder, lambda tensors: tensors.update({"more": torch.zeros(2)}))
    policy, info = PolicyModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(policy, PolicyModel)
    assert info["unexpected_keys"] == {"more"}


@pytest.mark.parametrize("kind", ["without its pooler", "with a head"])
def test_encoders_load_from_what_they_were_pretrained_as(tmp_path, kind):
    """The policy reads the last hidden states: a pooler may be missing from the files, and a head is not used."""
    model, tokenizer = encoder()
    tokenizer.save_pretrained(tmp_path)
    if kind == "with a head":
        torch.manual_seed(0)
        headed = BertForMaskedLM(model.config)
        headed.bert.load_state_dict(BertModel(model.config, add_pooling_layer=False).state_dict())
        headed.save_pretrained(tmp_path)
        assert "pooler.dense.weight" not in load_file(tmp_path / "model.safetensors")
    else:
        model.save_pretrained(tmp_path)
        change_tensors(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    assert PolicyModel.from_encoder(str(tmp_path), [pair()] * 2).encoder is not None


def test_an_encoder_that_is_not_whole(tmp_path):
    model, tokenizer = encoder()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.pop("embeddings.word_embeddings.weight"))
    with pytest.raises(ConfigError, match=f"encoder {tmp_path} is not whole: .* no embeddings.word_embeddings.weight"):
        PolicyModel.from_encoder(str(tmp_path), [pair()] * 2)
    with pytest.raises(ConfigError, match="there is no such folder"):
        PolicyModel.from_encoder(str(tmp_path / "missing"), [pair()] * 2)


def test_code_of_a_repository_is_not_asked_for(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    given = []
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *args, **options: (given.append(options), load(*args, **options))[1]
    )
    PolicyModel.from_pretrained(folder)
    assert [options["trust_remote_code"] for options in given] == [False]


@pytest.mark.parametrize("kind", ["hf_rlae_policy", "hf_rlae_ensemble"])
def test_a_policy_inside_a_policy(kind):
    inner: dict = {"model_type": kind}
    inner["encoder_config"] = inner
    with pytest.raises(ConfigError, match="give the config of a text encoder"):
        PolicyConfig(observation="text", encoder_config=inner)
