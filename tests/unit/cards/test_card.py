"""Cards with odd names, and what they show."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from hf_rlae.cards import CORY, RLAE, Card, CardMember, Evaluation, code, member_of, write_eval_results
from hf_rlae.errors import ConfigError
from hf_rlae.policies import PolicyConfig
from hf_rlae.policies.card import policy_card
from tests.support.card_rules import faults_of_card, faults_of_results, head_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def card_of(**fields):
    return Card(**{"title": "mine", "description": "A model.", "use": "1 + 1", "tags": ["rlae"], **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"datasets": ["my data: v2"]}, "a name that a YAML of strings would break, and no Hub id"),
        ({"datasets": ["owner/data", "/home/me/data"]}, "one on the Hub, one folder"),
        ({"tags": ["a: b", "- c", "#d", "yes", "1.0", "{x", "two\nlines"]}, "tags that YAML reads as something else"),
        ({"title": "a: b\n---\n# c"}, "a title that would end the head"),
        ({"title": "{{ 7 * 7 }} {% raw %}"}, "a title in the template's language"),
        ({"title": "*", "description": "{{ x }}", "training": "- a: `b|c`"}, "Markdown"),
        ({"settings": {"reward_weights": [1.0, 2.0], "template": "a|b\n`c`"}}, "values that break a table"),
        ({"evaluations": [Evaluation("my data: v2", "right answers (%)", 0.5)]}, "names that are no types"),
        ({"title": "---", "evaluations": [Evaluation("d", "m", 1)]}, "the title is the model's name in the head"),
        ({"base": CardMember("owner/base", COMMIT)}, "an adapter"),
        ({"base": CardMember("folder")}, "a base that is not on the Hub"),
        ({"members": [CardMember("owner/one", COMMIT), CardMember("two|x")]}, "members"),
        ({"license": "apache-2.0"}, "a licence"),
    ],
)
def test_every_card_has_a_head_that_the_hub_accepts(fields, reason):
    text = str(card_of(**fields).render())
    assert faults_of_card(text) == [], reason
    again = ModelCard(text)
    assert again.data.library_name == "hf_rlae"
    assert again.data.pipeline_tag == "text-generation"
    assert "## Limits" in again.text


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ("license: apache 2", "license"),
        ("pipeline_tag: texts", "pipeline_tag"),
        ("tags: rlae", "tags"),
        ("datasets:\n- 'my data: v2'", "datasets"),
        ("base_model: /home/me/base", "base_model"),
        ("base_model_relation: child", "base_model_relation"),
        ("datasets: my data: v2", "mapping values are not allowed"),
        ("model-index:\n- name: x", "model-index"),
    ],
)
def test_the_rules_notice_faults(head, fault):
    assert any(fault in found for found in faults_of_card(f"---\n{head}\n---\n# x\n"))


def test_what_a_card_tells():
    card = card_of(
        members=[CardMember("owner/one", COMMIT), CardMember("owner/two"), member_of("/home/me/models/three")],
        settings={"learning_rate": 0.1},
        training="Trained.",
        evaluations=[Evaluation("chains", "accuracy", 0.82, 0.01, {"best member": 0.04}, split="test", note="Five.")],
        picture="weights.png",
        limits=["It is small."],
        citations=[RLAE, CORY],
        versions={"hf_rlae": "9.9"},
        datasets=["owner/data"],
    ).render()
    assert card.data.base_model == ["owner/one", "owner/two"]
    assert card.data.datasets == ["owner/data"]
    for piece in (
        COMMIT, "not pinned", "| 3 | `three` | not on the Hub |", "| `learning_rate` | `0.1` |", "Trained.",
        "| chains, test | accuracy |", "| **this model** | **0.820 ± 0.010** |", "| best member | 0.040 |", "Five.",
        "](weights.png)", "- It is small.", "- hf_rlae: 9.9", "2506.00439", "2410.06101",
        "Install `hf_rlae`, then:",
    ):  # fmt: skip
        assert piece in card.text, piece
    assert "/home/me" not in str(card)
    [result] = card.data.eval_results
    assert (result.dataset_name, result.metric_value, result.dataset_split) == ("chains", 0.82, "test")


def test_an_adapter_names_its_base_and_relation():
    card = card_of(base=CardMember("owner/base")).render()
    assert (card.data.base_model, card.data.base_model_relation) == ("owner/base", "adapter")
    assert card_of(base=CardMember("folder")).render().data.base_model is None


def test_results_on_datasets_of_the_hub_are_files(tmp_path):
    entries = [Evaluation("openai/gsm8k", "accuracy", 0.5, note="0-shot"), Evaluation("chains", "accuracy", 0.25)]
    [path] = write_eval_results(tmp_path, entries)
    assert path.relative_to(tmp_path).as_posix() == ".eval_results/openai-gsm8k.yaml"
    assert faults_of_results(path.read_text()) == []
    assert "0-shot" in path.read_text()
    index = head_of(str(card_of(evaluations=entries).render()))["model-index"]
    assert [result["dataset"]["name"] for result in index[0]["results"]] == ["chains"]
    assert write_eval_results(tmp_path / "none", entries[1:]) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("value", ["0.5", None, True])
def test_a_result_is_a_number(value):
    with pytest.raises(ConfigError, match="is no number"):
        Evaluation("chains", "accuracy", value)


def test_the_rules_for_results_notice_faults():
    assert faults_of_results("- dataset: {id: gsm8k}\n  value: high\n  metric: x")


def test_code_in_cells():
    assert code("a|b") == "`a\\|b`"
    assert code("a`b") == "`` a`b ``"
    assert code(["x", 1]) == "`['x', 1]`"


@pytest.mark.parametrize(("names", "is_told"), [(["me/a", "me/b"], False), (["me/a", "b"], True), ([], True)])
def test_a_policy_s_code_says_which_members_are_missing(names, is_told):
    config = PolicyConfig(member_hidden_sizes=[8, 8])
    use = policy_card(config, "me/policy", [CardMember(name) for name in names]).use
    assert ("# give the folders of members that are not on the Hub" in use) == is_told
