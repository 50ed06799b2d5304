"""Runs what the documentation shows: Python blocks in Markdown pages, and `>>>` examples in docstrings.

`tests/conftest.py` registers it, so it works for every folder that pytest is given beside `tests`.
"""

from __future__ import annotations

from contextlib import ExitStack
from doctest import ELLIPSIS
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

from tests.support.registries import names_put_back

_TOP = Path(__file__).resolve().parents[1]
_HELD = "_registries"


def _hold_registries(namespace):
    """A page may register names; its end takes them away."""
    namespace[_HELD] = ExitStack()
    namespace[_HELD].enter_context(names_put_back())


_pages = Sybil(
    path=str(_TOP),
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    setup=_hold_registries,
    teardown=lambda namespace: namespace[_HELD].close(),
)
_docstrings = Sybil(path=str(_TOP / "hf_rlae"), parsers=[DocTestParser(optionflags=ELLIPSIS)], patterns=["*.py"])

pytest_collect_file = (_pages + _docstrings).pytest()
