"""Members on the Hub are pinned: a saved ensemble loads the commits that it was built from."""

from __future__ import annotations

import json
import time

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer

from hf_rlae import ConfigError, EnsembleForCausalLM, MemberError, PolicyError, PolicyModel, TokenizerError
from hf_rlae.members import LazyMember, Member
from tests.support.ensembles import TEXTS, encode
from tests.support.models import pair, with_adapters

NOWHERE = "http://127.0.0.1:9"  # nobody listens


@pytest.fixture
def add(hub, tmp_path):
    """A function that puts a member into a repository, in a new commit."""

    def put(repo_id, seed=0, model=None, tokenizer=None, **options):
        own, tokenizer = pair("llama", seed, tokenizer, num_hidden_layers=1)
        folder = tmp_path / f"{repo_id.replace('/', '-')}-{len(hub.requests)}-{seed}"
        (own if model is None else model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return hub.add_repo(repo_id, folder, **options)

    return put


def logits(model):
    return model(**encode(TEXTS[0])).logits.log_softmax(-1)


@pytest.mark.parametrize("kind", [Member, LazyMember])
@pytest.mark.parametrize("revision", [None, "main", "v1", "a commit"])
def test_the_commit_of_a_member(hub, add, kind, revision):
    commit = add("me/a")
    hub.repository("me/a").tags["v1"] = commit
    member = kind.load("me/a", revision=commit if revision == "a commit" else revision)
    assert member.commit == commit
    add("me/a", 1)
    member.prepare()
    torch.testing.assert_close(logits(member.model), logits(pair("llama", 0, num_hidden_layers=1)[0]))


def test_the_commit_of_a_pair(hub, add):
    """As transformers tells it; a model that never was on the Hub has none."""
    commit = add("me/a")
    member = Member.load("me/a")
    assert Member(member.model, member.tokenizer).commit == commit
    assert Member(*pair()).commit is None


def test_pinned_means_pinned(hub, add, tmp_path):
    """`main` of both members moves, and the ensemble loads what it was built from."""
    commits = [add("me/a", 0), add("me/b", 1)]
    ensemble = EnsembleForCausalLM.from_members(["me/a", "me/b"])
    assert ensemble.config.revisions == commits
    expected = logits(ensemble)
    ensemble.save_pretrained(tmp_path / "ensemble")
    saved = json.loads((tmp_path / "ensemble" / "config.json").read_text())
    assert (saved["members"], saved["revisions"]) == (["me/a", "me/b"], commits)
    add("me/a", 2), add("me/b", 3)
    torch.testing.assert_close(logits(EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble")), expected)
    moved = logits(EnsembleForCausalLM.from_members(["me/a", "me/b"]))
    assert not torch.allclose(moved, expected)


@pytest.mark.parametrize("written", [False, True])
def test_an_adapter_and_its_base_are_pinned(hub, add, tmp_path, written):
    """The base's commit is that of `adapter_config.json` if there is one, else the newest of that time."""
    first = add("me/base")
    base = Member.load("me/base").model
    model = with_adapters(base, ["default"])
    model.peft_config["default"].revision = first if written else None
    commit = add("me/adapter", model=model)
    if written:
        add("me/base", 1)
    ensemble = EnsembleForCausalLM.from_members(["me/adapter"])
    assert (ensemble.config.revisions, ensemble.config.base_revisions) == ([commit], [first])
    torch.testing.assert_close(logits(ensemble), logits(model))
    expected = logits(ensemble)
    ensemble.save_pretrained(tmp_path / "ensemble")
    add("me/base", 2)
    add("me/adapter", model=with_adapters(pair("llama", num_hidden_layers=1)[0], ["default"], seed=7))
    torch.testing.assert_close(logits(EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble")), expected)


@pytest.fixture
def unreachable(hub, monkeypatch):
    """A function after which nobody answers."""

    def cut():
        monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return cut


@pytest.mark.parametrize("kind", [Member, LazyMember])
def test_a_member_in_the_cache(hub, add, kind, unreachable):
    """It is loaded without the Hub, from the commit that its revision had."""
    commit = add("me/a")
    kind.load("me/a")
    unreachable()
    assert kind.load("me/a").commit == commit


@pytest.mark.parametrize(
    ("load", "error"),
    [
        pytest.param(Member.load, MemberError, id="member"),
        pytest.param(LazyMember.load, MemberError, id="lazy member"),
        pytest.param(PolicyModel.from_pretrained, PolicyError, id="policy"),
        pytest.param(EnsembleForCausalLM.from_pretrained, ConfigError, id="ensemble"),
        pytest.param(lambda name: PolicyModel.from_encoder(name, [pair()]), ConfigError, id="encoder"),
    ],
)
def test_a_hub_that_cannot_be_reached(load, error, unreachable):
    """The error comes at once; the client alone would ask for more than a minute."""
    unreachable()
    start = time.perf_counter()
    with pytest.raises(error, match=r"me/b cannot be loaded: .* the Hub \(http://127.0.0.1:9\) cannot be reached"):
        load("me/b")
    assert time.perf_counter() - start < 5


def test_a_hub_that_answers(hub):
    with pytest.raises(MemberError, match="me/b is not a local folder and is not a valid model identifier"):
        Member.load("me/b")
    hub.add_repo("me/a", {"config.json": "{}"})
    with pytest.raises(MemberError, match="v9 is not a valid git identifier"):
        Member.load("me/a", revision="v9")
    hub.add_repo("me/gated", {"config.json": "{}"}, gated=True)
    with pytest.raises(MemberError, match="access a gated repo"):
        Member.load("me/gated", token=False)
    assert hub.downloads() == []


def changed(tokenizer):
    """The same tokenizer after two of its ids have changed their text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    table = state["model"]["vocab"]
    table["a"], table["b"] = table["b"], table["a"]
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=tokenizer.eos_token)


@pytest.mark.parametrize("grain", ["token", "byte"])
def test_a_tokenizer_that_has_changed(hub, add, tmp_path, grain):
    """Before the weights are downloaded; `members=` takes the new one."""
    add("me/a"), add("me/b", 1)
    ensemble = EnsembleForCausalLM.from_members(["me/a", "me/b"], grain=grain)
    ensemble.save_pretrained(tmp_path / "ensemble")
    path = tmp_path / "ensemble" / "config.json"
    saved = json.loads(path.read_text())
    assert len(saved["vocabulary_hashes"]) == 2
    EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble")
    EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", grain="byte")
    add("me/b", 2, tokenizer=changed(pair()[1]))
    path.write_text(json.dumps({**saved, "revisions": None}))
    hub.requests.clear()
    with pytest.raises(TokenizerError, match="ids of member me/b stand for other text than when"):
        EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble")
    assert "model.safetensors" not in hub.downloads("me/b")
    EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", members=["me/a", "me/b"])


def test_members_that_are_not_pinned(hub, add, tmp_path, caplog):
    """One warning says which; saving again pins them."""
    commits = add("me/a"), add("me/b", 1)
    base = with_adapters(Member.load("me/a").model, ["default"])
    add("me/adapter", model=base)
    EnsembleForCausalLM.from_members(["me/a", "me/b", "me/adapter"]).save_pretrained(tmp_path)
    EnsembleForCausalLM.from_pretrained(tmp_path)
    assert "commits" not in caplog.text
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "revisions": ["main", *saved["revisions"][1:]], "base_revisions": None}))
    EnsembleForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path)
    [told] = [record.getMessage() for record in caplog.records if "which commits of" in record.getMessage()]
    assert "commits of me/a, the base model of me/adapter it was made with" in told
    again = json.loads(path.read_text())
    assert (again["revisions"][:2], again["base_revisions"]) == ([*commits], [None, None, commits[0]])
