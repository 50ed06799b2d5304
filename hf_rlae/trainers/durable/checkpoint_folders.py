"""Folders of checkpoints, which are written, replaced and deleted atomically."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import sort_checkpoints

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers.durable.manifest import missing_parts

logger = logging.getLogger(__name__)

# transformers neither uploads folders whose name begins with an underscore nor takes them for checkpoints
UNFINISHED = "_unfinished"
REPLACED = "_replaced-"
_NAME = re.compile(r"checkpoint-(\d+)")
_PLAIN = (type(None), bool, int, float, str, bytes)


def whole_checkpoints(folder: str | Path) -> dict[int, str]:
    """The complete checkpoints of an output folder; the others are logged with the parts that they lack.

    Args:
        folder (`str` or `Path`): the trainer's `output_dir`; it may not exist.

    Returns:
        `dict[int, str]`: optimizer step -> folder, in ascending order.

    Example:

    >>> whole_checkpoints("nowhere")
    {}
    """
    found: dict[int, str] = {}
    for path in Path(folder).glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        reasons = missing_parts(path)
        if reasons:
            logger.warning("%s is incomplete and is ignored: %s", path, "; ".join(reasons))
        else:
            found[int(match[1])] = os.path.join(folder, path.name)
    return dict(sorted(found.items()))


def check_plain(value: Any, place: str) -> None:
    """Raises for a value that `torch.load(weights_only=True)` does not restore exactly.

    Args:
        value: the value to be saved.
        place (`str`): its name in the message.

    Raises:
        CheckpointError: names the place of the first such value.

    Example:

    >>> check_plain({"counts": [1, 2.5, None], "ids": torch.arange(3)}, "state")
    """
    kind = type(value)
    if kind in _PLAIN or kind is torch.Tensor:
        return
    if kind is dict:
        for key, entry in value.items():
            if type(key) not in _PLAIN:
                raise CheckpointError(f"{place} has the key {key!r}; keys must be strings or numbers")
            check_plain(entry, f"{place}[{key!r}]")
    elif kind in (list, tuple):
        for index, entry in enumerate(value):
            check_plain(entry, f"{place}[{index}]")
    else:
        raise CheckpointError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}; a checkpoint may contain tensors, numbers, strings, "
            f"bytes, None, and plain dicts, lists and tuples: convert it (`dict(...)`, `list(...)`, `.tolist()`)"
        )


def settle(run_dir: Path) -> None:
    """Cleans up after an interrupted save: restores or deletes replaced folders, and deletes unfinished ones."""
    for aside in run_dir.glob(f"{REPLACED}checkpoint-*"):
        final = run_dir / aside.name.removeprefix(REPLACED)
        if final.exists():
            _delete(aside)
        else:
            os.rename(aside, final)
    if os.path.lexists(run_dir / UNFINISHED):
        _delete(run_dir / UNFINISHED)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:  # a file or a link, perhaps to nowhere
        path.unlink()


def publish(staged: Path, final: Path) -> None:
    """Renames a complete folder to its final name, after all of it is on the disk.

    Whatever had that name (a folder, a file, a link) is moved aside first; after a kill in between, `settle` restores
    it.

    Args:
        staged (`Path`): on the same file system as `final`.
        final (`Path`): such as `out/checkpoint-100`; it may exist.
    """
    for root, _, names in os.walk(staged):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))
    aside = final.with_name(REPLACED + final.name)
    if os.path.lexists(final):
        os.rename(final, aside)
    os.rename(staged, final)
    _sync(final.parent)
    settle(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rotate(run_dir: str, newest: str, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints, as transformers does, but renames each of them first, so that none is incomplete.

    Args:
        run_dir (`str`): their folder.
        newest (`str`): the newest one; it is kept.
        limit (`int`, *optional*): how many are kept; all if not given or not above 0.
        best (`str`, *optional*): another one that is kept.
    """
    if limit is None or limit <= 0:
        return
    checkpoints = sort_checkpoints(run_dir, use_mtime=True)
    kept = {os.path.abspath(path) for path in (newest, best) if path is not None}
    doomed = [path for path in checkpoints if os.path.abspath(path) not in kept]
    for path in doomed[: max(0, len(checkpoints) - max(limit, len(kept)))]:
        os.makedirs(os.path.join(run_dir, UNFINISHED), exist_ok=True)
        os.rename(path, os.path.join(run_dir, UNFINISHED, os.path.basename(path)))
        settle(Path(run_dir))
