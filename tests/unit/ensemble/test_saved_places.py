"""Saved ensembles: where their members are, what is loaded from them, and what they do not tell."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from hf_rlae import ConfigError, EnsembleConfig, EnsembleForCausalLM, MemberError, PolicyModel, StaticPolicy
from hf_rlae.ensemble.member_places import place_of
from tests.support.ensembles import TEXTS, encode, endless
from tests.support.models import pair
from tests.support.policies import encoder
from tests.support.tokenizers import byte_level_bpe, characters

CANARY = "canary-of-alice"
from_pretrained = EnsembleForCausalLM.from_pretrained


def save_member(folder, seed=0, **options):
    model, tokenizer = pair("llama", seed, num_hidden_layers=1)
    model.generation_config.update(**options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    return [save_member(tmp_path / CANARY / name, seed) for seed, name in enumerate("ab")]


def write_config(folder, **fields):
    EnsembleConfig(**fields).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [
        ("/home/alice/ensemble/members/a", "/home/alice/ensemble", "./members/a"),  # inside
        ("/home/alice/a", "/home/alice/ensemble", "../a"),  # beside
        ("/home/alice/a", "/home/alice/made/today/ensemble", "../../../a"),  # beside a folder that contains it
        ("/home/alice/secret/a", "/home/alice/ensemble", "./a"),  # the name of another folder is not written
        ("/data/a", "/home/alice/ensemble", "./a"),  # elsewhere
    ],
)
def test_how_the_folder_of_a_member_is_written(source, target, place):
    assert place_of(source, Path(target)) == place


def test_relative_places_belong_to_the_folder_of_the_ensemble(folders, tmp_path, monkeypatch):
    """Not to the working directory, which has other members of the same names here."""
    shutil.move(tmp_path / CANARY, tmp_path / "ensemble")
    write_config(tmp_path / "ensemble", members=["a", "./b"])
    save_member(tmp_path / "a", 7)
    save_member(tmp_path / "b", 7)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "ensemble", "ensemble"):
        loaded = from_pretrained(source)
        expected = endless([pair("llama", seed, num_hidden_layers=1) for seed in range(2)])
        torch.testing.assert_close(loaded(**encode(TEXTS[0])).logits, expected(**encode(TEXTS[0])).logits)


@pytest.mark.parametrize("kind", ["absolute", "above", "a link"])
def test_places_outside_of_the_folder(folders, tmp_path, kind):
    place = {"absolute": folders[0], "above": f"../{CANARY}/a", "a link": "./link"}[kind]
    folder = write_config(tmp_path / "ensemble", members=[place])
    if kind == "a link":
        os.symlink(folders[0], folder / "link")
    with pytest.raises(
        ConfigError, match=r"member 0 .* is outside of the ensemble's folder .* pass allow_outside=True"
    ):
        from_pretrained(folder)
    assert len(from_pretrained(folder, allow_outside=True).members) == 1


def test_a_hub_id_that_is_also_a_folder_of_the_working_directory(folders, tmp_path, monkeypatch):
    """transformers loads the folder, whichever ensemble names the id."""
    folder = write_config(tmp_path / "ensemble", members=["a"])
    monkeypatch.chdir(tmp_path / CANARY)
    for options in ({}, {"allow_outside": True}):
        with pytest.raises(ConfigError, match=r"member 0 \(a\) is a Hub id, and the working directory has a folder"):
            from_pretrained(folder, **options)


@pytest.mark.parametrize("place", ["./a", "../gone", "/gone/a", None, "a\0b", "./" + "a" * 5000])
def test_members_that_are_not_there(folders, tmp_path, place):
    """They can be given in their place."""
    folder = write_config(tmp_path / "ensemble", members=[place, place])
    with pytest.raises(ConfigError, match=r"member 0 .* pass `members=\[\.\.\.\]`"):
        from_pretrained(folder, allow_outside=True)
    given = [folders[0], pair("llama", 1, num_hidden_layers=1)]
    assert from_pretrained(folder, members=given).members[0].name == folders[0]


@pytest.mark.parametrize("kind", ["folders", "objects"])
def test_members_can_be_saved_with_the_ensemble(folders, tmp_path, kind, monkeypatch):
    """Then the folder is loaded from any place, without arguments; saving it again changes nothing."""
    given = folders if kind == "folders" else [pair("llama", seed, num_hidden_layers=1) for seed in range(2)]
    ensemble = EnsembleForCausalLM.from_members(given, StaticPolicy([0.3, 0.7]), end_token_ids=[[], []])
    ensemble.save_pretrained(tmp_path / "ensemble", save_members=True)
    shutil.rmtree(tmp_path / CANARY)
    shutil.move(tmp_path / "ensemble", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    for again in (False, True):
        loaded = from_pretrained(tmp_path / "moved")
        torch.testing.assert_close(loaded(**encode(TEXTS[0])).logits, ensemble(**encode(TEXTS[0])).logits)
        assert len(list((tmp_path / "moved" / "members").iterdir())) == 2
        loaded.save_pretrained(tmp_path / "moved", save_members=again)


def test_an_unsaved_member_names_both_ways(tmp_path):
    ensemble = EnsembleForCausalLM.from_members([pair("llama")])
    with pytest.raises(ConfigError, match=r"member 0 .* pass save_members=True, or save that model first"):
        ensemble.save_pretrained(tmp_path / "ensemble")
    assert not (tmp_path / "ensemble").exists()


def test_a_warning_says_how_to_load(folders, tmp_path, caplog):
    ensemble = EnsembleForCausalLM.from_members(folders)
    ensemble.save_pretrained(tmp_path / CANARY / "ensemble")
    assert "loaded with `allow_outside=True`" in caplog.text
    ensemble.save_pretrained(tmp_path / "ensemble")
    assert "load the ensemble with `members=[...]`" in caplog.text


@pytest.mark.parametrize("save_members", [False, True])
@pytest.mark.parametrize("policy", ["none", "learned"])
def test_nothing_private_is_saved(folders, tmp_path, monkeypatch, save_members, policy):
    """No path, user or token of this machine in any byte of the folder."""
    monkeypatch.setenv("USER", "user-" + CANARY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + CANARY)
    ensemble = EnsembleForCausalLM.from_members(folders)
    if policy == "learned":
        model, tokenizer = encoder()
        model.save_pretrained(tmp_path / CANARY / "encoder")
        tokenizer.save_pretrained(tmp_path / CANARY / "encoder")
        place = str(tmp_path / CANARY / "encoder")
        PolicyModel.from_encoder(place, ensemble.members, observation="both").save_pretrained(tmp_path / CANARY / "p")
        ensemble.set_policy(PolicyModel.from_pretrained(tmp_path / CANARY / "p"))
    for target in (tmp_path / "ensemble", tmp_path / CANARY / "ensemble"):
        ensemble.save_pretrained(target, save_members=save_members)
        files = [path for path in target.rglob("*") if path.is_file()]
        assert len(files) >= 2
        for path in files:
            assert CANARY not in path.relative_to(target).as_posix()
            for secret in (CANARY, str(tmp_path), str(Path.home())):
                assert secret.encode() not in path.read_bytes(), path


NO_ENSEMBLES = {
    "a missing folder": (lambda f: shutil.rmtree(f), "there is no such folder"),
    "a folder without config": (lambda f: (f / "config.json").unlink(), r"it has no .*config\.json"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "cannot be read"),
    "a field of a wrong type": (lambda f: write_config_text(f, span_length="many"), "cannot be read: .*span_length"),
    "no members": (lambda f: write_config_text(f, members=[]), "names no members"),
    "another model": (lambda f: write_config_text(f, model_type="llama"), "model_type='llama'.*from_members"),
    "an unknown policy": (lambda f: write_config_text(f, policy={"name": "statics"}), "did you mean 'static'"),
    "a policy of no kind": (lambda f: write_config_text(f, policy={"model_type": [3]}), r"model_type=\[3\]"),
    "settings of no policy": (
        lambda f: write_config_text(f, policy={"name": "static", "weight": [1]}),
        "the policy 'static' cannot be made",
    ),
    "labels that fill the memory": (
        lambda f: write_config_text(f, num_labels=10**9),
        "num_labels=1000000000; remove it",
    ),
    "labels that are no number": (lambda f: write_config_text(f, num_labels="two"), "num_labels='two'; remove it"),
    "itself as its member": (lambda f: write_config_text(f, members=["./."]), "is the ensemble itself"),
    "an ensemble as its member": (
        lambda f: write_config_text(write_config(f / "a", members=["./b"]), use_cache=False),
        "hf_rlae_ensemble",
    ),
}


def write_config_text(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("name", NO_ENSEMBLES)
def test_folders_that_hold_no_ensemble(tmp_path, name):
    spoil, message = NO_ENSEMBLES[name]
    save_member(tmp_path / "ensemble" / "a")
    folder = write_config(tmp_path / "ensemble", members=["./a"], policy={"name": "uniform"})
    spoil(folder)
    with pytest.raises((ConfigError, MemberError), match=message):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span_lenght": 2}, "span_lenght is not an option of from_pretrained: did you mean 'span_length'"),
        ({"allow_outsid": True}, "did you mean 'allow_outside'"),
        ({"torch_dtype": "auto"}, "torch_dtype is not an option"),
    ],
)
def test_unknown_options(tmp_path, options, message):
    folder = write_config(tmp_path, members=["me/a"])
    with pytest.raises(ConfigError, match=message):
        from_pretrained(folder, **options)


def test_two_thousand_members(tmp_path):
    """A saved ensemble may not load whole models without an end; `max_members` allows it."""
    save_member(tmp_path / "ensemble" / "a")
    folder = write_config(tmp_path / "ensemble", members=["./a"] * 2000)
    start = time.thread_time()
    with pytest.raises(ConfigError, match="has 2000 members, each a whole model; pass max_members=2000"):
        from_pretrained(folder)
    assert time.thread_time() - start < 5  # in full it would take minutes
    write_config_text(folder, members=["./a"] * 3)
    with pytest.raises(ConfigError, match="max_members=3"):
        from_pretrained(folder, max_members=2)
    assert len(from_pretrained(folder, max_members=3).members) == 3


EXTREMES = {
    "beams": {"num_beams": 5000},
    "samples": {"num_return_sequences": 10**6, "do_sample": True},
    "new tokens": {"max_new_tokens": 10**9},
    "new tokens as a float": {"max_new_tokens": 1e9},
    "least new tokens": {"min_new_tokens": 10**9},
    "length": {"max_length": 10**9},
}


@pytest.mark.parametrize("where", ["member", "ensemble"])
@pytest.mark.parametrize("name", EXTREMES)
def test_saved_generation_configs_without_bounds(tmp_path, caplog, name, where):
    """They are ignored with a warning, in the only member's files and in the ensemble's; sensible values stay."""
    save_member(tmp_path / "ensemble" / "a", repetition_penalty=1.5, num_beams=2)
    folder = write_config(tmp_path / "ensemble", members=["./a"])
    path = folder / ("a/generation_config.json" if where == "member" else "generation_config.json")
    extreme = next(iter(EXTREMES[name]))
    saved = {"repetition_penalty": 1.5, "num_beams": 2, "pad_token_id": 0, **EXTREMES[name]}
    if extreme == "num_return_sequences":
        del saved["num_beams"]
    path.write_text(json.dumps(saved))
    ensemble = from_pretrained(folder)
    assert f"the saved generation config has {extreme}=" in caplog.text
    assert getattr(ensemble.generation_config, extreme) is None
    assert ensemble.generation_config.repetition_penalty == 1.5
    assert ensemble.generation_config.num_beams == (2 if "new" in name or name == "length" else None)
    assert ensemble.generate(**encode(TEXTS[0]), max_new_tokens=2, num_beams=1).shape[1] <= 14


@pytest.mark.parametrize("text", ["{", "[]", '{"num_beams": 2, "num_return_sequences": 3}', '{"max_new_tokens": -1}'])
def test_a_saved_generation_config_that_cannot_be_used(tmp_path, caplog, text):
    save_member(tmp_path / "ensemble" / "a")
    folder = write_config(tmp_path / "ensemble", members=["./a"])
    (folder / "generation_config.json").write_text(text)
    assert from_pretrained(folder).generation_config.max_new_tokens is None


@pytest.mark.parametrize("value", ["x", 1.5, [None], 10**6, -1, True])
def test_saved_ids_that_are_none(tmp_path, caplog, value):
    """In the ensemble's generation config its own ids are used; a member with such ids is damaged."""
    save_member(tmp_path / "ensemble" / "a")
    folder = write_config(tmp_path / "ensemble", members=["./a"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert from_pretrained(folder).generation_config.eos_token_id == 0
    assert "which is no id: 0 is used" in caplog.text
    (folder / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    if not isinstance(value, int) or isinstance(value, bool):
        with pytest.raises(MemberError, match=r"eos_token_id=.* in its GenerationConfig, which is no id"):
            from_pretrained(folder)


def test_ids_of_other_members(tmp_path, caplog):
    """With other members, ids of the saved generation config mean other tokens: the ensemble's own are used."""
    first, smaller, larger = (pair("llama", tokenizer=t) for t in (characters(), byte_level_bpe(300), byte_level_bpe()))
    EnsembleForCausalLM.from_members([first, smaller]).save_pretrained(tmp_path, save_members=True)
    stop = from_pretrained(tmp_path).generation_config.eos_token_id
    assert "for other members" not in caplog.text
    loaded = from_pretrained(tmp_path, members=[first, larger])
    assert stop < loaded.tokenizer.eos_token_id == loaded.generation_config.eos_token_id
    assert f"eos_token_id={stop} for other members" in caplog.text


def test_another_number_of_members(tmp_path):
    pairs = [pair("llama", seed) for seed in range(2)]
    EnsembleForCausalLM.from_members(pairs).save_pretrained(tmp_path, save_members=True)
    with pytest.raises(ConfigError, match=r"members has 1 entries, and the saved ensemble .* has 2 members"):
        from_pretrained(tmp_path, members=pairs[:1])


def test_options_reach_the_members(folders, tmp_path, monkeypatch):
    """A token is also that of private members; code of repositories runs only where it is allowed."""
    given = []
    load = EnsembleForCausalLM.from_members.__globals__["loading"].Member.load

    def look(source, **options):
        given.append(options)
        return load(source, **{name: options[name] for name in ("dtype", "end_token_ids")})

    monkeypatch.setattr("hf_rlae.ensemble.loading.Member.load", look)
    folder = write_config(tmp_path / "ensemble", members=[f"../{CANARY}/a"])
    options = {"allow_outside": True, "token": "t", "check_files": False}
    from_pretrained(folder, **options)
    from_pretrained(folder, **options, trust_remote_code=True, member_kwargs={"token": "other"})
    assert [(entry["token"], entry["trust_remote_code"]) for entry in given] == [("t", False), ("other", True)]
    assert not any(entry["check_files"] for entry in given)
