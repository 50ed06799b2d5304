"""Documents cite the papers as model cards do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_rlae.cards import CORY, RLAE

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
@pytest.mark.parametrize("entry", [RLAE, CORY], ids=["RLAE", "CORY"])
def test_the_first_pages_cite_the_papers(entry, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert entry in re.search(r"```bibtex\n(.*?)```", text, re.DOTALL)[1]
    assert entry.count("{") == entry.count("}")
