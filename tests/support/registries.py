"""Registries that are as before after a test that registers names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager

REGISTRIES = {
    "hf_rlae.baselines": "baselines",
    "hf_rlae.ensemble.mixing": "mixings",
    "hf_rlae.objectives": "objectives",
    "hf_rlae.policies": "policies",
    "hf_rlae.rewards": "rewards",
    "hf_rlae.tasks": "tasks",
    "hf_rlae.trainers.cory.roles": "roles",
}
"""The registries and the modules that have them."""


@contextmanager
def names_put_back() -> Iterator[None]:
    """Takes names away that are registered meanwhile: other tests in the process list what is registered."""
    for listing in ("hf_rlae.rewards.list_rewards", "hf_rlae.tasks.list_tasks", "hf_rlae.baselines.list_baselines"):
        pkgutil.resolve_name(listing)()  # imports what registers its names only then
    registries = [getattr(importlib.import_module(module), name) for module, name in REGISTRIES.items()]
    before = [dict(registry._entries) for registry in registries]
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry._entries = entries
