"""A saved ensemble inside the `generate` of a plain model, by a `custom_generate` folder or repository."""

from __future__ import annotations

import logging

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)

from hf_rlae import (
    EnsembleForCausalLM,
    PerplexityPolicy,
    StaticPolicy,
    free_ensembles,
    generate_with_ensemble,
    push_custom_generate,
    save_custom_generate,
)
from hf_rlae.ensemble import hosted_generate
from hf_rlae.errors import ConfigError, InputError
from tests.support.card_rules import faults_of_card
from tests.support.rlae import ensemble_of, members

TEXTS = ["Once upon a", "She said"]
MODES = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "stop strings": {"do_sample": False, "stop_strings": ["e", "a"]},
    "processors": {"do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
}


@pytest.fixture(autouse=True)
def forget(monkeypatch, tmp_path):
    """No ensembles of other tests, and no code that transformers has copied for them."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield
    free_ensembles()


def saved(place, kind="different", policy=None):
    """Two members, an ensemble with a learned policy, and its code, each in a folder; returns the code's folder."""
    names = []
    for number, (model, tokenizer) in enumerate(members(kind)):
        names.append(str(place / f"member-{number}"))
        model.save_pretrained(names[-1])
        tokenizer.save_pretrained(names[-1])
    made = policy or ensemble_of(kind=kind).policy
    EnsembleForCausalLM.from_members(names, made, span_length=2).save_pretrained(place / "ensemble")
    save_custom_generate(place / "code", place / "ensemble")
    return str(place / "code")


@pytest.fixture(scope="module", params=["shared", "different"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    saved(place, request.param)
    return place


def host_of(folder, number=0):
    place = folder / f"member-{number}"
    return AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place, padding_side="left")


def run(model, tokenizer, folder, texts=TEXTS, **options):
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    options = {"custom_generate": str(folder / "code"), "allow_outside": True, "max_new_tokens": 8, **options}
    set_seed(3)
    return model.generate(**inputs, trust_remote_code=True, **options)


def expected_texts(folder, **options):
    ensemble = EnsembleForCausalLM.from_pretrained(folder / "ensemble", allow_outside=True)
    inputs = ensemble.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    if "stop_strings" in options:
        options["tokenizer"] = ensemble.tokenizer
    set_seed(3)
    return ensemble.tokenizer.batch_decode(
        ensemble.generate(**inputs, max_new_tokens=8, **options), skip_special_tokens=True
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_that_of_the_ensemble(folder, mode):
    model, tokenizer = host_of(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = run(model, tokenizer, folder, **MODES[mode])
    assert int(ids.max()) < model.config.vocab_size
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == expected_texts(folder, **MODES[mode])


def test_streamers_receive_ids_of_the_host(folder):
    model, tokenizer = host_of(folder)
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    ids = run(model, tokenizer, folder, texts=TEXTS[:1], do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_criteria_and_outputs(folder):
    model, tokenizer = host_of(folder)
    length = tokenizer(TEXTS[0], return_tensors="pt").input_ids.shape[1] + 3
    criteria = StoppingCriteriaList([MaxLengthCriteria(length)])
    found = run(
        model, tokenizer, folder, texts=TEXTS[:1], do_sample=False, stopping_criteria=criteria,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert found.span_weights.shape[-1] == 2
    assert found.member_logps.shape[1] == 3


def test_members_are_loaded_once_and_the_host_never(folder, monkeypatch):
    loads = []
    original = hosted_generate.EnsembleForCausalLM.from_pretrained.__func__
    monkeypatch.setattr(
        hosted_generate.EnsembleForCausalLM,
        "from_pretrained",
        classmethod(lambda cls, source, **options: loads.append(options) or original(cls, source, **options)),
    )
    model, tokenizer = host_of(folder)
    one = run(model, tokenizer, folder, do_sample=False)
    [kept] = hosted_generate._ensembles.values()
    assert kept.members[0].model is model
    assert torch.equal(run(model, tokenizer, folder, do_sample=False), one)
    assert len(loads) == 1
    again, _ = host_of(folder)
    assert torch.equal(run(again, tokenizer, folder, do_sample=False), one)
    [other] = hosted_generate._ensembles.values()
    assert other.members[0].model is again
    assert other.members[1] is kept.members[1]
    free_ensembles()
    assert not hosted_generate._ensembles


def test_a_folder_that_is_saved_again_is_loaded_again(tmp_path):
    saved(tmp_path, policy=StaticPolicy([1.0, 0.0]))
    model, tokenizer = host_of(tmp_path)
    before = run(model, tokenizer, tmp_path, do_sample=False)
    ensemble = EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True)
    ensemble.set_policy(StaticPolicy([0.0, 1.0]))
    ensemble.save_pretrained(tmp_path / "ensemble")
    after = run(model, tokenizer, tmp_path, do_sample=False)
    assert torch.equal(
        before, run(model, tokenizer, tmp_path, do_sample=False, custom_generate=None, allow_outside=None)
    )
    assert tokenizer.batch_decode(after) != tokenizer.batch_decode(before)


def test_few_ensembles_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(hosted_generate, "MAX_ENSEMBLES", 2)
    saved(tmp_path, "shared")
    model, tokenizer = host_of(tmp_path)
    for dtype in ("auto", torch.float32, torch.bfloat16):
        run(model, tokenizer, tmp_path, do_sample=False, member_dtype=dtype)
    assert [key[-1] for key in hosted_generate._ensembles] == ["torch.float32", "torch.bfloat16"]


def test_another_host_is_refused(folder):
    model, tokenizer = host_of(folder, 1)
    with pytest.raises(InputError, match=r"first member of the ensemble .* is \.\./member-0, but .*member-1"):
        run(model, tokenizer, folder, do_sample=False)
    assert not hosted_generate._ensembles


def test_a_copy_of_the_first_member(folder, tmp_path):
    model, tokenizer = host_of(folder)
    model.save_pretrained(tmp_path / "copy")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    with pytest.raises(InputError, match="check_host=False"):
        run(copy, tokenizer, folder, do_sample=False)
    expected = run(model, tokenizer, folder, do_sample=False)
    assert torch.equal(run(copy, tokenizer, folder, do_sample=False, check_host=False), expected)


def test_an_ensemble_generates_by_itself(folder):
    ensemble = EnsembleForCausalLM.from_pretrained(folder / "ensemble", allow_outside=True)
    inputs = ensemble.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = ensemble.generate(**inputs, **options)
    code = {"custom_generate": str(folder / "code"), "trust_remote_code": True}
    assert torch.equal(ensemble.generate(**inputs, **options, **code), expected)
    assert torch.equal(generate_with_ensemble(ensemble, "nowhere", **inputs, **options), expected)
    assert not hosted_generate._ensembles


def test_code_runs_only_if_it_is_trusted(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    model, tokenizer = host_of(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(
            **tokenizer(TEXTS[0], return_tensors="pt"), custom_generate=str(folder / "code"), trust_remote_code=False
        )


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [({"input_ids": [[1, 2]]}, "no tensor"), ({}, "nothing"), ({"input_ids": torch.tensor([1, 2])}, "one dimension")],
)
def test_prompts_are_ids(folder, inputs, reason):
    model, _ = host_of(folder)
    with pytest.raises(InputError, match="pass prompts as `input_ids`"):
        generate_with_ensemble(model, folder / "ensemble", allow_outside=True, **inputs)


def test_what_is_written(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        save_custom_generate(tmp_path / "code", folder / "ensemble")
    assert "push_custom_generate" in caplog.text
    code = tmp_path / "code"
    assert sorted(path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()) == [
        "README.md", "custom_generate/generate.py", "custom_generate/requirements.txt",
    ]  # fmt: skip
    card = ModelCard.load(code / "README.md")
    assert "custom_generate" in card.data.tags
    assert "## Arguments" in card.text
    assert faults_of_card(str(card)) == []
    assert (code / "custom_generate" / "requirements.txt").read_text().startswith("hf_rlae")


def test_a_folder_of_a_model_is_refused(folder):
    with pytest.raises(ConfigError, match="the folder of a model"):
        save_custom_generate(folder / "ensemble", folder / "ensemble")
    with pytest.raises(ConfigError, match="is no saved ensemble"):
        save_custom_generate(folder / "new", folder / "member-0")
    with pytest.raises(ConfigError, match="is no repository on the Hub"):
        push_custom_generate("me/code", str(folder / "ensemble"))


@pytest.fixture
def published(hub, tmp_path):
    """Two members and an ensemble on the local Hub, with the code in a repository of its own."""
    for number, (model, tokenizer) in enumerate(members("different")):
        model.save_pretrained(tmp_path / str(number))
        tokenizer.save_pretrained(tmp_path / str(number))
        hub.add_repo(f"me/member-{number}", tmp_path / str(number))
    EnsembleForCausalLM.from_members(["me/member-0", "me/member-1"], PerplexityPolicy()).push_to_hub("me/ensemble")
    push_custom_generate("ensemble-generate", "me/ensemble")
    return hub


def test_over_the_hub_the_code_names_a_commit(published):
    commit = published.commit("me/ensemble")
    files = published.files("me/ensemble-generate")
    assert sorted(files) == ["README.md", "custom_generate/generate.py", "custom_generate/requirements.txt"]
    assert f'REVISION = "{commit}"' in files["custom_generate/generate.py"].decode()
    card = ModelCard(files["README.md"].decode())
    assert faults_of_card(str(card)) == []
    assert commit in card.text
    assert 'custom_generate="me/ensemble-generate"' in card.text
    model, tokenizer = (kind.from_pretrained("me/member-0") for kind in (AutoModelForCausalLM, AutoTokenizer))
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    options = {"max_new_tokens": 8, "do_sample": False}
    code = {"custom_generate": "me/ensemble-generate", "trust_remote_code": True}
    ids = model.generate(**inputs, **options, **code)
    ensemble = EnsembleForCausalLM.from_pretrained("me/ensemble", revision=commit)
    expected = ensemble.tokenizer.decode(ensemble.generate(**inputs, **options)[0], skip_special_tokens=True)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == expected
    published.add_repo("me/ensemble", {"config.json": "{}"})  # a later push is not seen
    free_ensembles()
    assert torch.equal(model.generate(**inputs, **options, **code), ids)


def test_a_first_member_inside_the_ensemble_s_repository_is_refused(published, tmp_path):
    """`from_pretrained` of a plain model would need its own repository; nothing is created."""
    EnsembleForCausalLM.from_members([str(tmp_path / "0"), "me/member-1"]).push_to_hub("me/own", save_members=True)
    for write in (push_custom_generate, save_custom_generate):
        with pytest.raises(ConfigError, match=r"first member of me/own is inside .*push that model to a repository"):
            write("me/own-generate", "me/own")
    assert ("model", "me/own-generate") not in published.repositories


def test_the_ensemble_s_own_repository_is_refused(published):
    before = published.files("me/ensemble")
    with pytest.raises(ConfigError, match="give another name, such as 'me/ensemble-generate'"):
        push_custom_generate("me/ensemble", "me/ensemble")
    assert published.files("me/ensemble") == before
