"""Runs what the documentation shows: Python blocks in Markdown pages, and `>>>` examples in docstrings."""

from __future__ import annotations

import os
from doctest import ELLIPSIS

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pages = Sybil(parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"])
docstrings = Sybil(path="hf_rlae", parsers=[DocTestParser(optionflags=ELLIPSIS)], patterns=["*.py"])

pytest_collect_file = (pages + docstrings).pytest()
