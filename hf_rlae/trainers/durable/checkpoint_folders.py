"""Folders of checkpoints: whole or not there, whatever happens while they are written, replaced or deleted."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import sort_checkpoints

from hf_rlae.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "hf_rlae_checkpoint.json"
# transformers uploads nothing whose name begins with an underscore, and its searches for checkpoints do not find it
UNFINISHED = "_unfinished"
REPLACED = "_replaced-"
_NAME = re.compile(r"checkpoint-(\d+)")
_PLAIN = (type(None), bool, int, float, str, bytes)


def missing_parts(folder: str | Path) -> list[str]:
    """What a folder lacks of a whole checkpoint; nothing for a whole one.

    A checkpoint of `DurableTrainer` lists its own files and their sizes, so that a torn one is told apart also where
    somebody else tore it: an interrupted copy, a full disk, a deletion that was not finished.

    Source: ours.

    Args:
        folder (`str` or `Path`): such as `out/checkpoint-100`.

    Returns:
        `list[str]`: one part a line, empty if all is there.

    Example:

    >>> missing_parts("nowhere/checkpoint-1")
    ['nowhere/checkpoint-1 is not a folder']
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"].items()
    except FileNotFoundError:
        return [f"{MANIFEST} is not there (it is written last, and only by the trainers of hf_rlae)"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} cannot be read"]
    reasons = []
    for name, size in files:
        path = folder / name
        if not path.is_file():
            reasons.append(f"{name} is not there")
        elif path.stat().st_size != size:
            reasons.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return reasons


def whole_checkpoints(folder: str | Path) -> dict[int, str]:
    """The whole checkpoints of an output folder; those that are not whole are logged with what they lack.

    Args:
        folder (`str` or `Path`): the trainer's `output_dir`; it need not exist.

    Returns:
        `dict[int, str]`: optimizer step -> folder, in rising order.

    Example:

    >>> whole_checkpoints("nowhere")
    {}
    """
    found: dict[int, str] = {}
    for path in Path(folder).glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        reasons = missing_parts(path)
        if reasons:
            logger.warning("%s is not whole and is left out: %s", path, "; ".join(reasons))
        else:
            found[int(match[1])] = os.path.join(folder, path.name)
    return dict(sorted(found.items()))


def check_plain(value: Any, place: str) -> None:
    """Raises where something is not what `torch.load(weights_only=True)` gives back as it was.

    Args:
        value: what is to be saved.
        place (`str`): what it is called in the message.

    Raises:
        CheckpointError: names the place of the first such thing.

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
            f"{place} is a {kind.__module__}.{kind.__qualname__}; a checkpoint takes tensors, numbers, strings, bytes, "
            f"None, and plain dicts, lists and tuples: convert it (`dict(...)`, `list(...)`, `.tolist()`)"
        )


def settle(run_dir: Path) -> None:
    """Puts right what a killed save left behind: puts back or deletes what was replaced, deletes what is unfinished."""
    for aside in run_dir.glob(f"{REPLACED}checkpoint-*"):
        final = run_dir / aside.name.removeprefix(REPLACED)
        if final.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, final)
    if (run_dir / UNFINISHED).exists():
        shutil.rmtree(run_dir / UNFINISHED)


def publish(staged: Path, final: Path) -> None:
    """Gives a folder that is complete its name, in one step, after all of it is on the disk.

    What had the name before is put aside first; killed in between, `settle` puts it back.

    Args:
        staged (`Path`): on the same file system as `final`.
        final (`Path`): such as `out/checkpoint-100`; it may be there.
    """
    for root, _, names in os.walk(staged):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))
    aside = final.with_name(REPLACED + final.name)
    if final.exists():
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
    """Deletes the oldest checkpoints, as transformers does, but each loses its name before its files.

    Args:
        run_dir (`str`): where they lie.
        newest (`str`): the one just written; it stays.
        limit (`int`, *optional*): how many stay; all if not given or not above 0.
        best (`str`, *optional*): another one that stays.
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
