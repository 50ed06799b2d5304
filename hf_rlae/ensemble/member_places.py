"""Where the members of a saved ensemble are: Hub ids, folders inside it, and folders elsewhere."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import snapshot_download

from hf_rlae.errors import ConfigError
from hf_rlae.hub_ids import is_repo_id

logger = logging.getLogger(__name__)

MEMBERS_FOLDER = "members"
"""The folder of the members that are saved with an ensemble."""

_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def is_folder(source: str) -> bool:
    """Whether a member's source is a folder of this machine, and not a Hub id."""
    return os.path.isdir(source) or not is_repo_id(source)


def name_of(source: str) -> str:
    """The own name of a folder, as it is in the names of saved members' folders.

    Example:

    >>> name_of("/home/me/my model"), name_of("ensemble/members/0-my-model")
    ('my-model', 'my-model')
    """
    path = Path(source)
    own = re.sub(r"^\d+-", "", path.name) if path.parent.name == MEMBERS_FOLDER else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", own)


def place_of(source: str, target: Path) -> str:
    """How the folder of a member is written into an ensemble that is saved in `target`.

    No name of another folder is written: inside `target` and beside it (or beside a folder that contains it) the folder
    has a relative path, elsewhere only its own name.

    Example:

    >>> place_of("/models/llama", Path("/models/ensembles/one")), place_of("/private/llama", Path("/models/one"))
    ('../../llama', './llama')
    """
    path, target = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if path.is_relative_to(target):
        return "./" + path.relative_to(target).as_posix()
    above = [target, *target.parents]
    if path.parent in above:
        return "/".join([*([".."] * above.index(path.parent)), path.name])
    return f"./{path.name}"


def find_members(
    places: Mapping[int, str | None], source: str, subfolder: str, allow_outside: bool, hub: Mapping[str, Any]
) -> dict[int, str]:
    """The folders and Hub ids of the members of a saved ensemble.

    Args:
        places (`Mapping[int, str]`): entries of `config.members` by index. `./x` and `../x` are relative to the
            ensemble's folder.
        source (`str`), subfolder (`str`): where the ensemble is.
        allow_outside (`bool`): whether members may be folders outside of the ensemble's.
        hub: options of the Hub.

    Raises:
        ConfigError: a member that is not there, or is outside of the ensemble's folder without `allow_outside`.
    """
    folder = Path(source, subfolder)
    if not folder.is_dir() and any(_is_inside(place) for place in places.values() if place):
        pattern = f"{subfolder}/{MEMBERS_FOLDER}/*".lstrip("/")
        options = {name: hub[name] for name in _HUB_OPTIONS if name in hub}
        folder = Path(snapshot_download(source, allow_patterns=[pattern], **options), subfolder)
    return {index: _find(place or "", index, folder, allow_outside) for index, place in places.items()}


def _find(place: str, index: int, folder: Path, allow_outside: bool) -> str:
    inside = folder / place
    if is_repo_id(place) and not os.path.isdir(inside):
        if os.path.isdir(place):
            raise ConfigError(
                f"member {index} ({place}) is a Hub id, and the working directory has a folder of that name, which "
                "transformers would load instead; change the working directory, or pass `members=[...]`"
            )
        return place
    if not place or not os.path.isdir(inside):  # unlike `Path.is_dir`, false for every string
        raise ConfigError(
            f"member {index} ({place!r:.200}) is a folder that was not saved with the ensemble, and it is not "
            f"at that place beside {folder}; pass `members=[...]` with a folder or Hub id per member, or save the "
            "ensemble with `save_members=True`"
        )
    if inside.resolve() == folder.resolve():
        raise ConfigError(f"member {index} ({place!r}) is the ensemble itself; a member is one language model")
    if not allow_outside and not inside.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"member {index} ({place!r}) is outside of the ensemble's folder {folder}; pass allow_outside=True if you "
            "trust the ensemble, or `members=[...]` with a folder or Hub id per member"
        )
    return os.path.normpath(inside)


def _is_inside(place: str) -> bool:
    return not is_repo_id(place) and not os.path.isabs(place) and not PureWindowsPath(place).is_absolute()


def warn_of_places(places: Sequence[str]) -> None:
    """Logs which members the saved ensemble does not have, and how it is loaded."""
    outside = [place for place in places if place.startswith("..")]
    unnamed = [place for place in places if re.fullmatch(r"\./[^/]+", place)]
    if outside and not unnamed:
        logger.warning(
            "the members %s are folders outside of the saved ensemble, which is loaded with `allow_outside=True`; "
            "`save_members=True` saves them with it",
            outside,
        )
    if unnamed:
        logger.warning(
            "the members %s are folders whose place is not saved (it may be private); load the ensemble with "
            "`members=[...]`, or save it with `save_members=True`",
            unnamed,
        )
