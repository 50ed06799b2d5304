"""Runs what the documentation shows: Python blocks in Markdown pages, and `>>>` examples in docstrings.

`tests/conftest.py` registers it, so it works for every folder that pytest is given beside `tests`.
"""

from __future__ import annotations

from doctest import ELLIPSIS
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

_TOP = Path(__file__).resolve().parents[1]
_pages = Sybil(path=str(_TOP), parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"])
_docstrings = Sybil(path=str(_TOP / "hf_rlae"), parsers=[DocTestParser(optionflags=ELLIPSIS)], patterns=["*.py"])

pytest_collect_file = (_pages + _docstrings).pytest()
