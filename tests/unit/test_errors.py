"""Typed errors: the nearest known name, and defects of the package."""

from __future__ import annotations

import pytest

from hf_rlae.errors import HfRlaeError, InternalError, nearest, present


def test_a_value_that_is_there_is_returned_as_it_is():
    values: list[int] = []
    assert present(values, "the values") is values
    assert present(0, "the count") == 0


def test_a_missing_value_is_a_typed_defect_that_names_it():
    with pytest.raises(InternalError, match=r"the draws is missing .* defect of hf_rlae") as caught:
        present(None, "the draws")
    assert isinstance(caught.value, HfRlaeError)


@pytest.mark.parametrize(
    ("given", "hint"),
    [("liner", "did you mean 'linear'? Known: linear, log."), ("sum", "Known: linear, log.")],
)
def test_unknown_names_get_the_nearest_known_one(given, hint):
    assert nearest(given, ["log", "linear"]) == hint
