"""The cards in `model_cards/`: rendered again, held against the rules of the Hub, and run."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
from huggingface_hub import ModelCard

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


def test_the_code_of_the_agents_card_answers():
    [code] = re.findall(r"```python\n(.*?)```", (CARDS / "adapters.md").read_text(encoding="utf-8"), re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    assert said.getvalue() == "85\n"


def test_the_agents_card_says_what_they_are_and_what_they_are_compared_with(cards):
    card = ModelCard(cards["adapters.md"])
    assert card.data.license == "apache-2.0"
    assert {"cory", "trl"} <= set(card.data.tags)
    stored = json.loads((CARDS / "results.json").read_text(encoding="utf-8"))["agents"]["evaluations"]
    for entry in stored:
        for value in (entry["value"], *entry["baselines"].values()):
            assert f"{value:.3f}" in card.text
    assert "2410.06101" in card.text
