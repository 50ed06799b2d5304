"""Floor 0: ready configuration files for `hf-rlae train`, and for `accelerate launch` in `accelerate/`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hf_rlae.errors import ConfigError, nearest

FOLDER = Path(__file__).parent


def list_configs() -> dict[str, str]:
    """The names of the ready files, sorted, each with its first line, which says what it is.

    Example:

    >>> list_configs()["cory_imdb"]
    'CORY on openings of film reviews, as its public code: GPT-2, PPO over tokens, a sentiment model as the reward.'
    """
    files = sorted(FOLDER.glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files}


def find_config(name: str) -> Path:
    """The file that `--config` means: a file, or the name of a ready one.

    Args:
        name (`str`): a path, or a name that `list_configs` has.

    Raises:
        ConfigError: there is no such file.
    """
    return _find("config", name, [FOLDER])


def find_accelerate_config(name: str) -> Path:
    """The file that `--accelerate_config` means: a file, one of ours (`two_gpus`), or one of TRL's (`zero2`).

    Raises:
        ConfigError: there is no such file.
    """
    trl = find_spec("trl")
    others = [Path(place) / "accelerate_configs" for place in (trl.submodule_search_locations or [])] if trl else []
    return _find("accelerate_config", name, [FOLDER / "accelerate", *others])


def _find(option: str, name: str, folders: list[Path]) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = {file.stem: file for folder in reversed(folders) for file in folder.glob("*.yaml")}
    if name not in known:
        raise ConfigError(
            f"{option}={name!r} is neither a file nor the name of a ready configuration: {nearest(name, known)}"
        )
    return known[name]
