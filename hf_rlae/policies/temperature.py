"""Validation of the temperature of softmax policies."""

from __future__ import annotations

import math
from typing import Any

from hf_rlae.errors import ConfigError


def checked_temperature(temperature: Any) -> float:
    """The temperature as a `float`.

    Raises:
        ConfigError: it is not finite, or not above 0.
    """
    if not isinstance(temperature, (int, float)) or not math.isfinite(temperature) or temperature <= 0:
        raise ConfigError(
            f"temperature={temperature!r}: it must be a finite number above 0; for equal weights use UniformPolicy"
        )
    return float(temperature)
