"""Fixtures: the folders with real tiny models and data (beside the checkout), and documentation examples."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from hypothesis import settings

from tests import documentation
from tests.support.hub_server import LocalHub, connect, connected_datasets
from tests.support.registries import names_put_back

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; tests share the cores by processes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


settings.register_profile("repeatable", derandomize=True, deadline=None)  # the same examples in every run
settings.load_profile("repeatable")


def pytest_configure(config):
    """Documentation lies outside `tests`, where this file's own hooks would not be asked."""
    config.pluginmanager.register(documentation)


def pytest_collection_finish(session):
    """Keeps imported modules out of garbage collections, and probes each model once.

    An ensemble of members with different tokenizers probes every member when it is built: 20 ms for a tiny one, and
    many tests build ensembles from the same members. `hf_rlae.members.choose_runner` itself stays as it is.
    """
    _freeze()
    if assembly := sys.modules.get("hf_rlae.ensemble.assembly"):
        assembly.choose_runner = _remembering(assembly.choose_runner)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """What is alive after the tests of a file is kept out of garbage collections, too."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        _freeze()
    return result


def _freeze():
    """`Trainer.train` collects all garbage; late in the suite that took longer than the training of a tiny model."""
    gc.collect()
    gc.freeze()


def _remembering(choose_runner):
    """`choose_runner` with a table of models that it has accepted."""
    known = WeakKeyDictionary()

    def choose(member):
        if member.model not in known:
            known[member.model] = choose_runner(member)
        return known[member.model]

    return choose


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


@pytest.fixture
def registries():
    """For tests that register names."""
    with names_put_back():
        yield


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A Hub on the loopback, with its own cache and user; see `tests/support/hub_server.py`."""
    hub = LocalHub(tmp_path_factory.mktemp("home-of-the-hub"))
    with hub.serving(), connected_datasets(hub):
        connect(hub, monkeypatch)
        yield hub
