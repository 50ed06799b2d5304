"""Validation of the temperature of softmax policies."""

from __future__ import annotations

from typing import Any

from hf_rlae.checks import Bounds, check_number


def checked_temperature(temperature: Any) -> float:
    """The temperature of a softmax as a `float`.

    Raises:
        ConfigError: it is not finite, or not above 0.
    """
    check_number("temperature", temperature, Bounds(above=0, note="for equal weights use UniformPolicy"))
    return float(temperature)
