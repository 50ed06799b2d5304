"""Mixings by name, and their settings."""

from __future__ import annotations

import pytest

from hf_rlae.ensemble.mixing import PowerMixing, make_mixing, mixings
from hf_rlae.errors import ConfigError


@pytest.mark.parametrize("name", ["linear", "log", "power", "contrast", "guidance"])
@pytest.mark.parametrize("settings", [None, {}])
def test_without_settings_it_is_the_registered_mixing(name, settings):
    assert make_mixing(name, settings) is mixings[name]


def test_settings_make_another_object():
    made = make_mixing("power", {"exponent": 0.5})
    assert isinstance(made, PowerMixing)
    assert (made.exponent, mixings["power"].exponent) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("contrast", {"alhpa": 0.1}, "mixing='contrast' has no setting 'alhpa': did you mean 'alpha'"),
        ("linear", {"alpha": 0.1}, "mixing='linear' has no setting 'alpha': it has none; leave mixing_kwargs out"),
        ("power", {"exponent": -1}, "exponent=-1"),
        ("contrats", {"alpha": 0.1}, "did you mean 'contrast'"),
    ],
)
def test_settings_that_are_refused(name, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        make_mixing(name, settings)
