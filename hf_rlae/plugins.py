"""Plug-ins of other packages: modules that register tasks, rewards, policies, mixings or objectives.

A package names such a module in its `pyproject.toml`:

    [project.entry-points."hf_rlae.plugins"]
    my_package = "my_package.for_hf_rlae"

The module is imported when a registry is listed, or is asked for a name that it does not have: `import hf_rlae` and the
built-in names never wait for plug-ins.
"""

from __future__ import annotations

import logging
import threading
from importlib.metadata import EntryPoint, entry_points

from hf_rlae.errors import shortened, with_type

logger = logging.getLogger(__name__)

GROUP = "hf_rlae.plugins"
"""The group of entry points."""

_lock = threading.RLock()
_is_loaded = False


def load_plugins() -> None:
    """Imports the plug-ins of all installed packages, once per process.

    A plug-in that cannot be imported is reported in one warning, which names its package, and left out; what it had
    registered before it failed stays. A module that is being imported may call this again: nothing happens then.
    """
    global _is_loaded
    if _is_loaded:
        with _lock:  # another thread may still be importing them
            return
    with _lock:
        if _is_loaded:
            return
        _is_loaded = True
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            _load(entry)


def _load(entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:  # whatever a foreign module raises must not end a run that does not need it
        package = entry.dist.name if entry.dist is not None else "an unknown package"
        logger.warning(
            "the plug-in %r of the package %s cannot be imported and is left out: %s. Update or uninstall %s",
            f"{entry.name} = {entry.value}",
            package,
            shortened(with_type(error, str(error))).rstrip("."),
            package,
        )
