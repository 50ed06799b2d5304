"""Names on the Hub where users give them: policies, Auto classes and pipelines, over HTTP."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyError, PolicyModel, StaticPolicy, TokenizerError
from tests.support.models import pair
from tests.support.policies import assert_same_parameters
from tests.support.tokenizers import chatml, instruct, raw_bytes, sentencepiece_bpe

OPTIONS = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture
def add(hub, tmp_path):
    """A function that saves objects, pushes their files, and returns the commit."""

    def put(repo_id, *objects):
        folder = tmp_path / f"{len(hub.requests)}-{repo_id.replace('/', '-')}"
        for given in objects:
            given.save_pretrained(folder)
        return hub.add_repo(repo_id, folder)

    return put


@pytest.fixture
def ensemble(add):
    """Two members on the Hub with different tokenizers."""
    for seed, (name, build) in enumerate({"me/a": chatml, "me/b": instruct}.items()):
        add(name, *pair("llama", seed, build(), num_hidden_layers=1))
    return EnsembleForCausalLM.from_members(["me/a", "me/b"], span_length=3)


def policy_for(ensemble):
    return PolicyModel(PolicyConfig.for_members(ensemble.members, hidden_size=8, span_length=3))


def test_pulling_a_policy(add, ensemble, monkeypatch, caplog):
    """Three lines; `main`, a commit in the name, and a commit as an option."""
    old, new = policy_for(ensemble), policy_for(ensemble)
    commit = add("me/policy", old)
    add("me/policy", new)
    members = ["me/a", "me/b"]
    load = EnsembleForCausalLM.from_members
    assert_same_parameters(load(members, policy="me/policy", span_length=3).policy, new)
    assert_same_parameters(load(members, policy=f"me/policy@{commit}", span_length=3).policy, old)
    assert_same_parameters(load(members, policy="me/policy", policy_revision=commit, span_length=3).policy, old)
    ensemble.set_policy(f"me/policy@{commit}")
    assert_same_parameters(ensemble.policy, old)
    assert_same_parameters(AutoModel.from_pretrained("me/policy", revision=commit), old)
    assert "trained with other members" not in caplog.text


def test_pulling_the_policy_of_an_ensemble(add, ensemble):
    policy = policy_for(ensemble)
    ensemble.set_policy(policy)
    commit = add("me/ensemble", ensemble)
    ensemble.set_policy(StaticPolicy([3, 1]))
    add("me/ensemble", ensemble)
    assert_same_parameters(
        EnsembleForCausalLM.from_members(["me/a", "me/b"], policy=f"me/ensemble@{commit}", span_length=3).policy, policy
    )
    ensemble.set_policy("me/ensemble")
    assert ensemble.policy.weights == [0.75, 0.25]
    saved = EnsembleForCausalLM.from_pretrained("me/ensemble", policy=f"me/ensemble@{commit}")
    assert_same_parameters(saved.policy, policy)


def test_members_of_the_training_are_compared(add, ensemble, caplog):
    """A member that has moved has another commit; nothing else differs."""
    ensemble.set_policy(policy_for(ensemble))
    add("me/ensemble", ensemble)
    add("me/b", *pair("llama", 9, instruct(), num_hidden_layers=1))
    EnsembleForCausalLM.from_members(["me/a", "me/b"], policy="me/ensemble", span_length=3)
    assert "of 2 members, 1 commits differ; it is used" in caplog.text


def test_nothing_large_is_downloaded_of_what_is_no_policy(hub, add):
    add("me/model", *pair("llama", 0, num_hidden_layers=1))
    with pytest.raises(PolicyError, match=r"policy me/model is no policy but a model \(model_type='llama'\)"):
        EnsembleForCausalLM.from_members(["me/nothing"], policy="me/model")
    assert hub.downloads("me/model") == ["config.json"]
    with pytest.raises(PolicyError, match="policy me/policy cannot be loaded"):
        EnsembleForCausalLM.from_members(["me/nothing"], policy="me/policy")


def texts_of(model, tokenizer):
    inputs = tokenizer(["Once upon", "The 3 big dogs ran"], return_tensors="pt", padding=True)
    return tokenizer.batch_decode(model.generate(**inputs, **OPTIONS), skip_special_tokens=True)


def test_auto_classes_and_pipelines(hub, add, ensemble):
    """What is loaded is pinned: members whose `main` moves stay what they were."""
    ensemble.set_policy(policy_for(ensemble))
    expected = texts_of(ensemble, ensemble.tokenizer)
    add("me/ensemble", ensemble)
    add("me/a", *pair("llama", 8, sentencepiece_bpe(), num_hidden_layers=1))
    add("me/b", *pair("llama", 9, raw_bytes(), num_hidden_layers=1))
    assert AutoConfig.from_pretrained("me/ensemble").model_type == "hf_rlae_ensemble"
    model, tokenizer = (auto.from_pretrained("me/ensemble") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert texts_of(model, tokenizer) == expected
    pipe = pipeline("text-generation", model="me/ensemble")
    assert [row[0]["generated_text"] for row in pipe(["Once upon", "The 3 big dogs ran"], **OPTIONS)] == expected
    messages = [{"role": "user", "content": "hi"}]
    answers = pipe([messages, [*messages, {"role": "assistant", "content": "a"}, *messages]], batch_size=2, **OPTIONS)
    inputs = ensemble.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = ensemble.generate(**inputs, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
    assert answers[0][0]["generated_text"][-1]["content"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_needs_no_weights(hub, add, ensemble):
    add("me/ensemble", ensemble)
    before = len(hub.requests)
    tokenizer = AutoTokenizer.from_pretrained("me/ensemble")
    assert tokenizer.get_vocab() == ensemble.tokenizer.get_vocab()
    assert not [str(request) for request in hub.requests[before:] if "safetensors" in request.path]


def test_a_tokenizer_that_is_pushed_alone(hub, ensemble, tmp_path):
    """With the tokenizers of the members, in one repository."""
    ensemble.tokenizer.save_pretrained(tmp_path / "tokenizer", push_to_hub=True, repo_id="me/tokenizer")
    files = hub.files("me/tokenizer")
    assert {"tokenizer_config.json", "tokenizers/0/tokenizer.json", "tokenizers/1/tokenizer.json"} <= set(files)
    hub.repository("me/a").branches.clear()  # the members are not needed
    tokenizer = AutoTokenizer.from_pretrained("me/tokenizer")
    assert tokenizer(["a", "Once </s>"])["input_ids"] == ensemble.tokenizer(["a", "Once </s>"])["input_ids"]


def test_a_tokenizer_of_unpinned_members_that_have_moved(add, hub, ensemble):
    """By hand, because ensembles write commits: the change is found."""
    add("me/ensemble", ensemble)
    files = hub.files("me/ensemble")
    config = {**json.loads(files["config.json"]), "revisions": None}
    hub.add_repo("me/unpinned", {**files, "config.json": json.dumps(config)})
    add("me/b", *pair("llama", 9, raw_bytes(), num_hidden_layers=1))
    with pytest.raises(TokenizerError, match="me/unpinned no longer matches"):
        AutoTokenizer.from_pretrained("me/unpinned")
