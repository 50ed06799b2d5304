"""What `from_members` refuses before any member runs: members, policies and options of the wrong kind."""

from __future__ import annotations

import fractions
import os
import re

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig

from hf_rlae import (
    ConfigError,
    EnsembleConfig,
    EnsembleForCausalLM,
    EntropyPolicy,
    InputError,
    MemberError,
    PolicyError,
    StaticPolicy,
    TokenizerError,
    UniformPolicy,
)
from tests.support.ensembles import encode
from tests.support.models import pair, pairs

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def build(policy=None, **options):
    return EnsembleForCausalLM.from_members(pairs(["llama", "gpt2"], num_hidden_layers=1), policy, **options)


def encoder():
    return AutoModel.from_config(BertConfig(vocab_size=330, **SIZES))


NOT_POLICIES = {
    "a class": (StaticPolicy, "StaticPolicy is a class; give an object of it"),
    "a class without arguments": (UniformPolicy, "UniformPolicy is a class"),
    "an encoder": (encoder, "BertModel reads input_ids, not a PolicyState"),
    "a language model": (lambda: pair("llama")[0], "LlamaForCausalLM reads input_ids"),
    "a function without arguments": (lambda: lambda: [0.5, 0.5], "cannot be called with a PolicyState"),
    "a function of two arguments": (lambda: lambda state, rows: state, "missing a required argument: 'rows'"),
    "weights": (lambda: [0.5, 0.5], "callable"),
}


@pytest.mark.parametrize("name", NOT_POLICIES)
def test_objects_that_are_no_policies(name):
    make, message = NOT_POLICIES[name]
    policy = make if isinstance(make, type) else make()
    with pytest.raises(PolicyError, match=message):
        build(policy)
    ensemble = build()
    with pytest.raises(PolicyError, match=message):
        ensemble.set_policy(policy)
    assert isinstance(ensemble.policy, UniformPolicy)


@pytest.mark.parametrize(
    "policy",
    [
        lambda state, temperature=1.0: torch.full((state.batch_size, 2), 0.5),
        lambda *states: torch.full((states[0].batch_size, 2), 0.5),
        EntropyPolicy(),
        torch.nn.Sequential(),
    ],
)
def test_objects_that_are(policy):
    assert build(policy).policy is policy


@pytest.mark.parametrize(
    "weights",
    ["ab", "12", b"12", 3, None, ["0.5", "0.5"], [1j, 1], [None, 1], [[1], [2]], [10**400, 1], [1e308, 1e308], {}],
)
def test_static_weights_that_are_no_numbers(weights):
    with pytest.raises(ConfigError, match=r"weights=.*one number per member"):
        StaticPolicy(weights)


def test_static_weights_of_other_kinds_of_numbers():
    for weights in ((1, 3), torch.tensor([1.0, 3.0]), [fractions.Fraction(1, 4), fractions.Fraction(3, 4)]):
        assert StaticPolicy(weights).weights == [0.25, 0.75]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
def test_weights_that_are_no_real_numbers(dtype):
    ensemble = build(lambda state: torch.tensor([[1, 0]]).to(dtype))
    with pytest.raises(PolicyError, match="real numbers"):
        ensemble.generate(**encode("the dogs ran"), max_new_tokens=1)


def unfilled():
    return pair("llama")[0].to("meta")


def complex_weights():
    model, _ = pair("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.complex64))
    return model


def test_embeddings_of_an_ensemble_are_not_resized():
    """transformers changes the weights of the first member before it finds out that it cannot set them."""
    ensemble = build()
    before = ensemble.get_input_embeddings().weight.clone()
    with pytest.raises(InputError, match="resize the members' own models before"):
        ensemble.resize_token_embeddings(5)
    assert torch.equal(ensemble.get_input_embeddings().weight, before)


NOT_MEMBERS = {
    "no tokenizer": (lambda: (pair("llama")[0], None), TokenizerError, "needs a tokenizer of transformers"),
    "a tokenizer that is text": (lambda: (pair("llama")[0], "gpt2"), TokenizerError, "got str"),
    "no data": (lambda: (unfilled(), pair("llama")[1]), MemberError, "no data in .* meta device"),
    "complex weights": (lambda: (complex_weights(), pair("llama")[1]), MemberError, "complex numbers in .*up_proj"),
    "swapped": (lambda: pair("llama")[::-1], MemberError, "must be a transformers model"),
    "a name of the command line": (
        lambda: "demo:addition-bytes",
        MemberError,
        r"members\[0\]='demo:addition-bytes' is a name for the command line; .*load_demo_member\('addition-bytes'\)",
    ),
    "a model alone": (lambda: pair("llama")[0], MemberError, r"members\[0\] must be .* where its tokenizer is"),
    "a pair of three": (lambda: (*pair("llama"), 3), MemberError, r"members\[0\] must be"),
}


@pytest.mark.parametrize("name", NOT_MEMBERS)
def test_objects_that_are_no_members(name):
    make, kind, message = NOT_MEMBERS[name]
    with pytest.raises(kind, match=message):
        EnsembleForCausalLM.from_members([make()])


def circle():
    policy: dict = {"name": "static"}
    policy["again"] = policy
    return policy


OPTIONS = {
    "more active members than there are": (
        {"max_active_members": 99},
        "max_active_members=99: there are only 2 members",
    ),
    "a type for loaded members": ({"dtype": torch.bfloat16}, "dtype=torch.bfloat16: member 0 is loaded already"),
    "devices for loaded members": ({"device_map": "auto"}, "device_map='auto': member 0 is loaded already"),
    "files of loaded members": ({"member_kwargs": [{"token": "t"}, None]}, "loaded already"),
    "a number for a list": ({"revisions": 3}, "revisions must be a list"),
    "text for a list": ({"adapter_names": "ab"}, "adapter_names must be a list"),
    "a number for a dict": ({"member_kwargs": [3, None]}, r"member_kwargs\[0\] must be a dict"),
    "end ids that are no numbers": ({"end_token_ids": [["a"], None]}, "end_token_ids of member .* list of ids"),
    "end ids that are no list": ({"end_token_ids": [5, None]}, r"end_token_ids\[0\]"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit(name):
    options, message = OPTIONS[name]
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_a_config_in_a_circle():
    with pytest.raises(ConfigError, match="policy must be a dict of JSON values"):
        EnsembleConfig(policy=circle())
    with pytest.raises(ConfigError, match="policy must be a dict of JSON values"):
        EnsembleConfig(policy={"name": torch.zeros(1)})


def test_the_context_of_an_ensemble_is_the_shortest_of_its_members():
    """Tools that cut long texts read it from the config."""
    short, long = pair("llama", 0, max_position_embeddings=64), pair("gpt2", 1)
    assert EnsembleForCausalLM.from_members([long, short]).config.max_position_embeddings == 64
    assert EnsembleForCausalLM.from_members([pair("mamba")]).config.max_position_embeddings is None


def saved(folder):
    model, tokenizer = pair("llama", num_hidden_layers=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_tokenizer_of_a_model_alone_is_where_the_model_was(tmp_path):
    folder = saved(tmp_path / "first")
    model = AutoModelForCausalLM.from_pretrained(folder)
    ensemble = EnsembleForCausalLM.from_members([model, pair("gpt2")])
    assert ensemble.members[0].model is model
    assert ensemble.members[0].tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    assert ensemble.config.members[0] == folder


@pytest.mark.parametrize("mistyped", ["frist", "./frist", "models/frist", "{absolute}/frist"])
def test_a_mistyped_folder_is_answered_with_the_folder_beside_it(tmp_path, monkeypatch, mistyped):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "first", tmp_path / "models" / "first"):
        folder.mkdir(parents=True)
    mistyped = mistyped.format(absolute=tmp_path)
    near = os.path.normpath(mistyped.replace("frist", "first"))
    with pytest.raises(MemberError, match=rf"no such folder \(did you mean {re.escape(near)}\?\)"):
        EnsembleForCausalLM.from_members([mistyped, pair("llama")])


@pytest.mark.parametrize("given", [["a", "b"], None, 3])
def test_members_are_not_loaded_by_from_pretrained(given):
    with pytest.raises(ConfigError, match=r"got \w+; build an ensemble from members with .*\.from_members"):
        EnsembleForCausalLM.from_pretrained(given)


@pytest.mark.parametrize("given", [[], None, "a folder", "members"])
def test_a_config_that_is_none_names_the_right_call(given):
    given = build().members if given == "members" else given
    with pytest.raises(ConfigError, match=r"EnsembleConfig, got .*EnsembleForCausalLM\.from_members\(\[\.\.\.\]\)"):
        EnsembleForCausalLM(given)
