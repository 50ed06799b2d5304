"""Whose card is in a folder or repository."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel
from hf_rlae.cards import Card, keep_published_card, write_card
from tests.support.card_rules import faults_of_card
from tests.support.models import pairs

OWN = "---\ntags:\n- mine\n---\n# A card of my own\n"


def card():
    return Card("ours", "A model.", "1 + 1", ["rlae"]).render()


@pytest.mark.parametrize(
    ("before", "is_written", "reason"),
    [
        (None, True, "no card"),
        ("", True, "an empty file"),
        (str(card()), True, "one of ours"),
        (OWN, False, "one of the user"),
        (str(card()).split("<!--")[0] + "# edited\n", False, "one of ours that the user edited, without the comment"),
        ("This is the model card of a 🤗 transformers model that has been pushed on the Hub.", True, "a draft"),
    ],
)
def test_a_card_of_a_user_is_kept(tmp_path, before, is_written, reason):
    path = tmp_path / "README.md"
    if before is not None:
        path.write_text(before)
    assert write_card(tmp_path, card()) is is_written, reason
    assert ("# ours" in path.read_text()) is is_written


@pytest.fixture
def ensemble():
    return EnsembleForCausalLM.from_members(pairs(["llama", "gpt2"]))


def test_a_saved_ensemble_has_a_card(tmp_path, ensemble):
    ensemble.save_pretrained(tmp_path, save_members=True)
    found = ModelCard.load(tmp_path / "README.md")
    assert faults_of_card(str(found)) == []
    assert "share one tokenizer" in found.text
    assert str(tmp_path.parent) not in str(found)
    (tmp_path / "README.md").write_text(OWN)
    ensemble.save_pretrained(tmp_path, save_members=True)
    assert (tmp_path / "README.md").read_text() == OWN


def test_pushed_models_have_our_card_unless_the_repository_has_a_user_s(hub, ensemble):
    policy = PolicyModel(PolicyConfig(num_members=2, member_hidden_sizes=[32, 32]))
    policy.add_model_tags(["rlae", "extra"])
    for model, name, options in ((ensemble, "ensemble", {"save_members": True}), (policy, "policy", {})):
        model.push_to_hub(name, tags=["given"], **options)
        found = ModelCard(hub.files(f"me/{name}")["README.md"].decode())
        assert f'"me/{name}"' in found.text
        assert {"given", "rlae"} <= set(found.data.tags)
        assert ("extra" in found.data.tags) is (name == "policy")
        found.validate()
        model.push_to_hub(name, **options)
        assert f"# {name}" in hub.files(f"me/{name}")["README.md"].decode()
        hub.add_repo(f"me/{name}", {"README.md": OWN})
        model.push_to_hub(name, **options)
        assert "# A card of my own" in hub.files(f"me/{name}")["README.md"].decode()


def test_the_hub_refuses_a_head_that_breaks_its_rules(hub):
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: mine\n---\n").validate()


def test_cards_of_repositories_that_do_not_exist_are_not_needed(hub, tmp_path):
    write_card(tmp_path, card())
    keep_published_card(tmp_path, "me/none", tags=["x"])
    assert "x" in ModelCard.load(tmp_path / "README.md").data.tags
