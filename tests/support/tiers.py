"""Sorts the cases of a sweep into tiers, and sets how many random cases a test draws."""

from __future__ import annotations

import os
from typing import Any

import pytest

IS_NIGHTLY = os.environ.get("HF_RLAE_NIGHTLY") == "1"
"""Whether tests draw the full counts of docs/reliability.md, as `.ci/nightly` asks them to."""


def draws(few: int, many: int) -> int:
    """The number of random cases of a test: `few` in the gate, `many` in `.ci/nightly`."""
    return many if IS_NIGHTLY else few


def show_figure(text: str) -> None:
    """A measured figure, which `.ci/nightly` prints beside the promise that the test shows."""
    print(f"figure: {text}")  # noqa: T201 (pytest captures it elsewhere)


def slow(*cases: Any) -> list[Any]:
    """Cases for `pytest.mark.parametrize` that only the slow tier runs: `[5, *slow(2, 8)]`.

    Args:
        cases: values of one parameter, or tuples with the values of several.
    """
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
