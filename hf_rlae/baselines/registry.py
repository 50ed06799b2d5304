"""The registry of baselines."""

from __future__ import annotations

import inspect
from typing import Any

from hf_rlae.baselines.protocol import Baseline
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.registry import Registry

baselines: Registry[type[Baseline]] = Registry("baseline")


def get_baseline(name: str, **settings: Any) -> Baseline:
    """A baseline by its name.

    Args:
        name (`str`): one of `list_baselines()`.
        settings: the arguments of its class.

    Raises:
        ConfigError: an unknown name, a setting that the baseline does not have, or an invalid value.

    Example:

    >>> from hf_rlae import get_baseline
    >>> get_baseline("unite", top_k=5).top_k
    5
    """
    kind = baselines[name]
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for setting in () if takes_any else settings:
        if setting not in parameters:
            known = nearest(setting, parameters) if parameters else "it has none"
            raise ConfigError(f"the baseline {name!r} has no setting {setting!r}: {known}")
    needed = [name for name, entry in parameters.items() if entry.default is entry.empty and entry.kind in (1, 3)]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise ConfigError(f"the baseline {name!r} needs {', '.join(missing)}; give it as get_baseline({name!r}, ...)")
    return kind(**settings)


def list_baselines() -> list[str]:
    """The names of all baselines, with those of installed plug-ins."""
    return list(baselines)
