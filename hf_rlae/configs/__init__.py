"""Floor 0: ready configuration files for `hf-rlae train`, and for `accelerate launch` in `accelerate/`."""

from __future__ import annotations

from collections.abc import Mapping
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
    return {
        name: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for name, file in sorted(_files(FOLDER).items())
    }


def list_tables() -> list[str]:
    """The names of the ready files that are tables of several trainings.

    Example:

    >>> list_tables()
    ['paper/span_lengths', 'paper/three_members', 'paper/two_members']
    """
    return [name for name in list_configs() if name.startswith("paper/")]


def find_config(name: str) -> Path:
    """The file that `--config` means: a file, or the name of a ready one.

    Args:
        name (`str`): a path, or a name that `list_configs` has.

    Raises:
        ConfigError: there is no such file.
    """
    return _find("config", name, _files(FOLDER))


def find_accelerate_config(name: str) -> Path:
    """The file that `--accelerate_config` means: a file, one of ours (`two_gpus`), or one of TRL's (`zero2`).

    Raises:
        ConfigError: there is no such file.
    """
    trl = find_spec("trl")
    others = [Path(place) / "accelerate_configs" for place in (trl.submodule_search_locations or [])] if trl else []
    folders = [*others, FOLDER / "accelerate"]
    return _find("accelerate_config", name, {file.stem: file for folder in folders for file in folder.glob("*.yaml")})


def _files(folder: Path) -> dict[str, Path]:
    """The ready files of trainings: those of a paper's tables are named with their folder."""
    names = {path.stem: path for path in folder.glob("*.yaml")}
    return names | {f"paper/{path.stem}": path for path in folder.glob("paper/*.yaml")}


def _find(option: str, name: str, known: Mapping[str, Path]) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name not in known:
        raise ConfigError(
            f"{option}={name!r} is neither a file nor the name of a ready configuration: {nearest(name, known)}"
        )
    return known[name]
