"""Fixtures: the folders with real tiny models and data (beside the checkout), and documentation examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import documentation

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; tests share the cores by processes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


settings.register_profile("repeatable", derandomize=True, deadline=None)  # the same examples in every run
settings.load_profile("repeatable")


def pytest_configure(config):
    """Documentation lies outside `tests`, where this file's own hooks would not be asked."""
    config.pluginmanager.register(documentation)


SHARED = Path(os.environ.get("HF_RLAE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(*parts: str) -> Path:
    """A path under the folder with real models and data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not there; set HF_RLAE_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def shared():
    return shared_path
