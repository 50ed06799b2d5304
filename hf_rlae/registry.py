"""Registries of named plug-ins, which are registered with a decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.plugins import load_plugins

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to plug-ins of one kind.

    A name that is not known, and a listing of all names, first import the plug-ins of other packages
    (`hf_rlae.plugins`).

    Args:
        kind (`str`): the kind of the entries, for messages (`"mixing"`, `"policy"`).

    Raises:
        ConfigError: a name is registered twice, or a name that is looked up is not registered.

    Example:

    >>> colours = Registry("colour")
    >>> @colours.register("red")
    ... def red():
    ...     return 1
    >>> colours["red"]()
    1
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that stores the decorated object under `name` and returns it unchanged."""

        def decorator(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"the {self.kind} {name!r} is registered twice; give the second one its own name")
            self._entries[name] = entry
            return entry

        return decorator

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise ConfigError(f"there is no {self.kind} named {name!r}: {nearest(str(name), self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._entries))
