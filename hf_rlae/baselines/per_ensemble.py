"""What baselines build once per ensemble, such as mappings of vocabularies; it goes when the ensemble goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from hf_rlae.ensemble import EnsembleForCausalLM

_T = TypeVar("_T")

_KEPT: WeakKeyDictionary[EnsembleForCausalLM, dict[str, Any]] = WeakKeyDictionary()


def kept(ensemble: EnsembleForCausalLM, name: str, make: Callable[[], _T]) -> _T:
    """What `make` returned for this ensemble and name; it must not refer to the ensemble."""
    own = _KEPT.setdefault(ensemble, {})
    if name not in own:
        own[name] = make()
    found: _T = own[name]
    return found
