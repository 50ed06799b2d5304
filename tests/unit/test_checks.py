"""Checks of options."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from hf_rlae.checks import NOT_NEGATIVE, Bounds, check_choice, check_fields, check_list
from hf_rlae.errors import ConfigError


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, [1], -0.1, 1.1])
def test_other_values_are_refused(value):
    assert not Bounds(0, 1).holds(value)
    with pytest.raises(ConfigError, match=r"rate=.*give a finite number of at least 0 and at most 1"):
        check_fields(SimpleNamespace(rate=value), {"rate": Bounds(0, 1)})


def test_least_and_most_belong_to_the_bounds_above_and_below_do_not():
    assert all(map(Bounds(0, 1).holds, (0, 0.5, 1)))
    assert [Bounds(above=0, most=1).holds(value) for value in (0, 0.5, 1)] == [False, True, True]
    assert [Bounds(0, below=1).holds(value) for value in (0, 0.5, 1)] == [True, True, False]
    assert [Bounds(1, is_whole=True).holds(value) for value in (1, 1.0)] == [True, False]
    assert Bounds(is_optional=True).holds(None)


def test_messages_name_all_limits():
    assert str(Bounds()) == "a finite number"
    bounds = Bounds(2, below=5, is_whole=True, is_optional=True, note="agents")
    assert str(bounds) == "a whole number of at least 2 and below 5, or None (agents)"


@pytest.mark.parametrize("values", [0.1, "ab", [0.1], [0.1, math.nan], [0.1, 0.2, 0.3]])
def test_lists(values):
    check_list("rates", None, NOT_NEGATIVE, 2)
    check_list("rates", (0.1, 0.2), NOT_NEGATIVE, 2)
    with pytest.raises(ConfigError, match=r"rates=.*give a list of 2 numbers, each a finite number of at least 0"):
        check_list("rates", values, NOT_NEGATIVE, 2)


@pytest.mark.parametrize("value", ["tokns", None, ["tokens"], 1])
def test_choices(value):
    check_choice("unit", "tokens", ("tokens", "characters"))
    with pytest.raises(ConfigError, match=r"unit=.*Known: characters, tokens"):
        check_choice("unit", value, ("tokens", "characters"))
