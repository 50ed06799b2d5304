"""Where members run: in this process, or in workers of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hf_rlae.checks import check_choice
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member, RemoteMember

PLACES = ("local", "ray")
PLACEMENT = ("placement", "resources", "member_timeout")
"""The options that say where members run."""


def per_member(value: Any, count: int, name: str) -> list[Any]:
    """An option as one entry per member; a dict holds for all members."""
    if value is None:
        return [None] * count
    if isinstance(value, Mapping):
        return [value] * count
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigError(f"{name} must be a list with one entry per member, got {value!r}")
    entries = list(value)
    if len(entries) != count:
        raise ConfigError(f"{name} has {len(entries)} entries for {count} members; give one per member")
    return entries


def remote_loaders(members: Sequence[Any], settings: dict[str, Any]) -> list[Callable[..., Member] | None]:
    """What loads each member that runs elsewhere, and `None` for the others; takes the options out of `settings`.

    Raises:
        ConfigError: an unknown place, a member for Ray that is loaded already, or resources of a member that is local.
    """
    given = {name: settings.pop(name, None) for name in PLACEMENT}
    placement, timeout = given["placement"], given["member_timeout"]
    places = (
        [placement] * len(members) if isinstance(placement, str) else per_member(placement, len(members), "placement")
    )
    resources = per_member(given["resources"], len(members), "resources")
    loaders: list[Callable[..., Member] | None] = []
    for index, (member, place, own) in enumerate(zip(members, places, resources, strict=True)):
        if place is not None:
            check_choice("placement", place, PLACES)
        if place != "ray":
            if own is not None and not isinstance(member, RemoteMember):
                raise ConfigError(
                    f"resources[{index}]={own!r}: member {index} runs in this process; set placement='ray'"
                )
            loaders.append(None)
        elif isinstance(member, RemoteMember):
            loaders.append(None)
        elif not isinstance(member, (str, os.PathLike)):
            raise ConfigError(
                f"placement='ray': member {index} is loaded already; give its folder or Hub id, which the worker loads "
                "(save the model and its tokenizer first), or placement='local' for it"
            )
        else:
            more = {} if timeout is None else {"timeout": timeout}
            loaders.append(partial(RemoteMember.load, resources=own, **more))
    return loaders
