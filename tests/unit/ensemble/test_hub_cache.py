"""Members and ensembles by Hub id, from a cache as `huggingface_hub` writes it, without a network."""

from __future__ import annotations

import json

import pytest
import torch

from hf_rlae import ConfigError, EnsembleConfig, EnsembleForCausalLM, MemberError
from hf_rlae.members import Member
from tests.support.ensembles import TEXTS, encode
from tests.support.models import pair, with_adapters

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path):
    """A function that makes the folder of a repository in the cache, and the options that load from it."""

    def folder(repository):
        owner, name = repository.split("/")
        place = tmp_path / "hub" / f"models--{owner}--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        (place / "snapshots" / COMMIT).mkdir(parents=True)
        return place / "snapshots" / COMMIT

    return folder, {"cache_dir": tmp_path / "hub", "local_files_only": True}


def save(folder, seed=0, model=None):
    own, tokenizer = pair("llama", seed, num_hidden_layers=1)
    (model or own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model or own


def test_a_member_by_its_id(cached):
    folder, options = cached
    model = save(folder("me/a"))
    member = Member.load("me/a", **options)
    torch.testing.assert_close(member.model(**encode(TEXTS[0])).logits, model(**encode(TEXTS[0])).logits)
    assert member.source == "me/a"
    with pytest.raises(MemberError, match="member me/b cannot be loaded: there is no such folder, and as a Hub id"):
        Member.load("me/b", **options)


@pytest.mark.parametrize("layers", [1000, 10**9])
def test_a_member_whose_config_declares_more_than_its_files_hold(cached, layers):
    folder, options = cached
    save(folder("me/a"))
    path = options["cache_dir"] / "models--me--a" / "snapshots" / COMMIT / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": layers}))
    with pytest.raises(
        MemberError, match=r"member me/a cannot be loaded: .*config.* declares .* (files hold only|any model)"
    ):
        Member.load("me/a", **options)


def test_files_with_several_elements_per_byte(cached):
    """Quantised weights hold more parameters than bytes; so a declared model may be larger than the files."""
    folder, options = cached
    place = folder("me/a")
    save(place)
    path = place / "config.json"
    config = {**json.loads(path.read_text()), "num_hidden_layers": 40}
    for fields, word in (({}, "declares"), ({"quantization_config": {"quant_method": "none such"}}, "is not whole")):
        path.write_text(json.dumps({**config, **fields}))
        for source, more in (("me/a", options), (str(place), {})):
            with pytest.raises(MemberError, match=word):
                Member.load(source, **more)


@pytest.mark.parametrize("adapter", ["default", "agent-2", None])
def test_adapters_by_their_id(cached, adapter):
    folder, options = cached
    base = save(folder("me/base"))
    base.name_or_path = base.config._name_or_path = "me/base"
    model = save(folder("me/adapters"), model=with_adapters(base, ["default", "agent-2"]))
    member = Member.load("me/adapters", adapter_name=adapter, **options)
    model.set_adapter(adapter or "default")
    torch.testing.assert_close(member.model(**encode(TEXTS[0])).logits, model(**encode(TEXTS[0])).logits)


def test_an_ensemble_with_its_members(cached):
    """Members beside the ensemble's files are those of its repository; other places are not there."""
    folder, options = cached
    place = folder("me/ensemble")
    members = [pair("llama", seed, num_hidden_layers=1) for seed in range(2)]
    ensemble = EnsembleForCausalLM.from_members(members)
    ensemble.save_pretrained(place, save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained("me/ensemble", **options)
    torch.testing.assert_close(loaded(**encode(TEXTS[0])).logits, ensemble(**encode(TEXTS[0])).logits)
    for outside in ("../other", str(place / "members")):
        EnsembleConfig(members=[outside]).save_pretrained(place)
        with pytest.raises(ConfigError, match=r"member 0 .* pass"):
            EnsembleForCausalLM.from_pretrained("me/ensemble", **options)


def test_an_ensemble_of_ids(cached):
    folder, options = cached
    save(folder("me/a"))
    EnsembleConfig(members=["me/a"], revisions=[None]).save_pretrained(folder("me/ensemble"))
    assert EnsembleForCausalLM.from_pretrained("me/ensemble", **options).config.members == ["me/a"]
    with pytest.raises(ConfigError, match="me/none is no saved ensemble"):
        EnsembleForCausalLM.from_pretrained("me/none", **options)
