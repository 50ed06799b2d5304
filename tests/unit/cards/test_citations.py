"""Documents cite the papers as model cards do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_rlae.cards import CORY, RLAE

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("entry", [RLAE, CORY], ids=["RLAE", "CORY"])
def test_the_first_page_cites_the_papers(entry):
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert entry in re.search(r"```bibtex\n(.*?)```", page, re.DOTALL)[1]
    assert entry.count("{") == entry.count("}")
