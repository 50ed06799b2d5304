"""The cards in `model_cards/`: rendered again, held against the rules of the Hub, and run."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
from huggingface_hub import ModelCard

from tests.studies import model_cards
from tests.studies.model_cards import CARDS, rendered
from tests.support.card_rules import faults_of_card

NAMES = ["ensemble-different.md", "policy-different.md", "policy-shared.md"]


@pytest.fixture(scope="module")
def cards():
    return rendered()


def test_the_folder_has_the_cards_of_all_that_is_shipped(cards):
    assert set(NAMES) <= set(cards)
    assert {path.name for path in CARDS.glob("*.md")} - {"README.md"} == set(cards)


def test_the_stored_cards_are_what_the_command_writes(cards):
    for name, text in cards.items():
        assert (CARDS / name).read_text(encoding="utf-8") == text, f"{name}: run python -m tests.studies.model_cards"


def test_their_heads_keep_the_rules_of_the_hub(cards, hub):
    for name, text in cards.items():
        assert faults_of_card(text) == [], name
        ModelCard(text).validate()


@pytest.mark.parametrize("name", NAMES)
def test_their_pictures_are_there_and_their_code_runs(name):
    text = (CARDS / name).read_text(encoding="utf-8")
    [picture] = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert (CARDS / picture).is_file()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    assert "7+15=22. 22" in said.getvalue()


def test_an_adapter_has_a_card_when_the_package_ships_one(tmp_path, monkeypatch):
    (tmp_path / "pioneer").mkdir()
    (tmp_path / "pioneer" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    monkeypatch.setattr(model_cards, "ADAPTERS", tmp_path)
    stored = json.loads((CARDS / "results.json").read_text())
    own = {"evaluations": [{"dataset": "stories", "metric": "reward", "value": 0.5, "spread": 0.1}], "use": "1 + 1"}
    text = str(model_cards._adapter(tmp_path / "pioneer", {**stored, "adapters": {"pioneer": own}}).render())
    assert faults_of_card(text) == []
    card = ModelCard(text)
    assert (card.data.base_model, card.data.base_model_relation, card.data.license) == (
        "owner/base",
        "adapter",
        "apache-2.0",
    )
    assert "0.500 ± 0.100" in card.text
    assert "2410.06101" in card.text
