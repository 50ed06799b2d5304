"""The sandbox for tests that need one, whatever isolates it."""

from __future__ import annotations

import platform
import sys
from functools import cache

import pytest

from hf_rlae.errors import SandboxUnavailableError
from hf_rlae.rewards.sandbox import landlock
from hf_rlae.rewards.sandbox.pool import Sandbox


@cache
def some_sandbox() -> Sandbox:
    """A sandbox, the same each time. The test is skipped where none is possible, and fails where one should be.

    Returns:
        `Sandbox`: with the default limits.
    """
    made = Sandbox()
    try:
        _ = made.backend
    except SandboxUnavailableError as error:
        if sys.platform == "linux" and platform.machine() == "x86_64" and _has_landlock():
            raise
        pytest.skip(str(error))
    return made


def _has_landlock() -> bool:
    try:
        return landlock.version() > 0
    except OSError:
        return False
