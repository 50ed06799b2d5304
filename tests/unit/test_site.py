"""The pages of the API: every public name has its place, every place is a name, and every page is in the navigation."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

import hf_rlae
import hf_rlae.trainers

DOCS = Path(__file__).parents[2] / "docs"
API = sorted((DOCS / "api").glob("*.md"))
NAMES = Counter(
    name
    for page in API
    for name in re.findall(r"^::: hf_rlae\.([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("module", [hf_rlae, hf_rlae.trainers])
def test_every_public_name_has_its_place(module):
    public = {name for name in module.__all__ if isinstance(name, str) and not name.startswith("_")}
    places = {name.rsplit(".", 1)[-1] for name in NAMES}
    assert sorted(public - places) == [], "add `::: hf_rlae.NAME` to a page of docs/api"


def test_every_place_is_a_name_and_has_a_docstring():
    assert [name for name, count in NAMES.items() if count > 1] == []
    for name in NAMES:
        module, _, attribute = f"hf_rlae.{name}".rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def test_every_page_is_in_the_navigation():
    site = (DOCS / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": ([\w/]+\.md)$", site, re.MULTILINE))
    places = (*DOCS.glob("*.md"), *API, *DOCS.glob("recipes/*.md"), DOCS / "results" / "README.md")
    pages = {path.relative_to(DOCS).as_posix() for path in places}
    assert pages == listed
