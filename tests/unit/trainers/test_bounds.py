"""Bounds of numbers in configurations."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from hf_rlae.errors import ConfigError
from hf_rlae.trainers.bounds import Bounds, check_bounds, check_list


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, [1], -0.1, 1.1])
def test_other_values_are_refused(value):
    assert not Bounds(0, 1).holds(value)
    with pytest.raises(ConfigError, match=r"rate=.*give a finite number of at least 0 and at most 1"):
        check_bounds(SimpleNamespace(rate=value), {"rate": Bounds(0, 1)})


def test_limits_belong_to_the_bounds_unless_they_are_open():
    assert all(map(Bounds(0, 1).holds, (0, 0.5, 1)))
    assert [Bounds(0, 1, is_open=True).holds(value) for value in (0, 0.5, 1)] == [False, True, True]
    assert [Bounds(1, is_whole=True).holds(value) for value in (1, 1.0)] == [True, False]
    assert Bounds(is_optional=True).holds(None)


@pytest.mark.parametrize("values", [0.1, "ab", [0.1], [0.1, math.nan], [0.1, 0.2, 0.3]])
def test_lists(values):
    check_list("rates", None, Bounds(), 2)
    check_list("rates", (0.1, 0.2), Bounds(), 2)
    with pytest.raises(ConfigError, match=r"rates=.*give a list of 2 numbers, each a finite number of at least 0"):
        check_list("rates", values, Bounds(), 2)
