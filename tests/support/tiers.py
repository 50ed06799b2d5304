"""Sorts the cases of a sweep into tiers."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Cases for `pytest.mark.parametrize` that only the slow tier runs: `[5, *slow(2, 8)]`.

    Args:
        cases: values of one parameter, or tuples with the values of several.
    """
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
