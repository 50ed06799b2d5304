"""Embedded members and policies by name: `demo:NAME` wherever a command takes a folder."""

from __future__ import annotations

from pathlib import Path

import hf_rlae
from hf_rlae.checks import check_choice

PREFIX = "demo:"
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"
"""The embedded members answer questions of one line, such as "What is 7 plus 5 times 3?", and know no conversations."""

_ZOO = Path(hf_rlae.__file__).parent / "zoo"


def is_embedded(source: str) -> bool:
    """Whether a name means an embedded member or policy."""
    return source.startswith(PREFIX)


def embedded_names(kind: str) -> list[str]:
    """All names.

    Args:
        kind (`str`): `"members"` or `"policies"`.

    Example:

    >>> embedded_names("policies")
    ['demo:different', 'demo:shared']
    """
    return sorted(f"{PREFIX}{folder.name}" for folder in (_ZOO / kind).iterdir() if (folder / "config.json").is_file())


def embedded_folder(source: str, kind: str) -> str:
    """The folder that a name means; other sources unchanged.

    Args:
        source (`str`): `demo:NAME`, a folder or a Hub id.
        kind (`str`): `"members"` or `"policies"`.

    Raises:
        ConfigError: there is no such name; the message has the nearest.
    """
    if not is_embedded(source):
        return source
    check_choice("--policy" if kind == "policies" else "MEMBER", source, embedded_names(kind))
    return str(_ZOO / kind / source.removeprefix(PREFIX))
