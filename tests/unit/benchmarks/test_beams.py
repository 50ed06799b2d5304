"""Beams across tokenizers: one text in several sequences, and only there."""

from __future__ import annotations

import pytest

from hf_rlae import EnsembleForCausalLM, load_demo_members
from tests.benchmarks.beams import distinct, rows_of


@pytest.mark.parametrize(
    ("kind", "grain", "texts"),
    [
        ("different", "token", 3),  # "5*3= 5*3=8. 8" twice, in other tokens
        ("different", "character", 4),  # a text is one sequence of characters
        ("shared", "token", 4),
    ],
)
def test_the_texts_of_four_beams(kind, grain, texts):
    members = load_demo_members(kind)
    ensemble = EnsembleForCausalLM.from_members([members[0], members[2]], grain=grain)
    assert distinct(ensemble, "5*3=", beams=4, tokens=24) == (texts, 4)


def test_a_row_per_case():
    rows = rows_of(["5*3="], tokens=6)
    assert [row[:2] for row in rows] == [["one", "token"], ["different", "token"], ["different", "character"]]
    assert all(" of " in cell for row in rows for cell in row[2:])
