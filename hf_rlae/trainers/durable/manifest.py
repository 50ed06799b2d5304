"""The manifest of a checkpoint: its files with sizes and digests, and the run that saved it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hf_rlae.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "hf_rlae_checkpoint.json"
_DIGESTS, _CHECKSUM = "sha256", "checksum"
_FIELDS: dict[str, type] = {"global_step": int, "num_processes": int, "resumable": bool, "files": dict}
_OPTIONAL_FIELDS: dict[str, type] = {_DIGESTS: dict, _CHECKSUM: str, "run": dict}
_THREADS = 4


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder whose files are all there.

    Args:
        folder (`Path`): of a checkpoint.
        fields (`Mapping`): `global_step`, `num_processes`, `resumable`, and optionally `run`.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    names = [path.relative_to(folder).as_posix() for path in paths]
    manifest = {
        **fields,
        "files": {name: path.stat().st_size for name, path in zip(names, paths, strict=True)},
        _DIGESTS: dict(zip(names, _digests(paths), strict=True)),
    }
    manifest[_CHECKSUM] = _checksum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Args:
        folder (`str` or `Path`): such as `out/checkpoint-100`.

    Returns:
        `dict`: `global_step`, `num_processes`, `resumable` and `files` (sizes by name); since digests are saved, also
        `sha256` (by name) and `checksum` (of the manifest itself); `run` if the trainer describes its run.

    Raises:
        CheckpointError: it is missing or damaged; the message is the reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{MANIFEST} is not there (it is written last, and only by the trainers of hf_rlae)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    fault = _fault(manifest)
    if fault:
        raise CheckpointError(f"{MANIFEST} cannot be read: {fault}")
    return manifest  # type: ignore[no-any-return]


def _fault(manifest: Any) -> str | None:
    """What is wrong with the contents of a manifest."""
    if not isinstance(manifest, dict):
        return f"it is a {type(manifest).__name__}"
    for name, kind in {**_FIELDS, **_OPTIONAL_FIELDS}.items():
        if name not in manifest:
            if name in _FIELDS:
                return f"it has no {name}"
        elif type(manifest[name]) is not kind:
            return f"{name} is {manifest[name]!r:.40}"
    sizes, digests = manifest["files"], manifest.get(_DIGESTS)
    if not all(type(size) is int for size in sizes.values()):
        return "a size is not a number"
    if (_CHECKSUM in manifest) != (digests is not None) or (
        digests is not None and (digests.keys() != sizes.keys() or manifest[_CHECKSUM] != _checksum(manifest))
    ):
        return "its checksum is wrong"
    return None


def missing_parts(folder: str | Path) -> list[str]:
    """The parts of a complete checkpoint that a folder lacks.

    A checkpoint of `DurableTrainer` lists its own files and their sizes, so that an incomplete one is recognised
    whatever the reason: an interrupted copy, a full disk, an interrupted deletion. See `damaged_parts` for changed
    files.

    Source: ours.

    Args:
        folder (`str` or `Path`): such as `out/checkpoint-100`.

    Returns:
        `list[str]`: one entry per part; empty for a complete checkpoint.

    Example:

    >>> missing_parts("nowhere/checkpoint-1")
    ['nowhere/checkpoint-1 is not a folder']
    """
    try:
        sizes = read_manifest(folder)["files"]
    except CheckpointError as error:
        return [str(error)]
    reasons = []
    for name, size in sizes.items():
        path = Path(folder, name)
        if not path.is_file():
            reasons.append(f"{name} is not there")
        elif path.stat().st_size != size:
            reasons.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return reasons


def damaged_parts(folder: str | Path) -> list[str]:
    """The parts of a checkpoint that are missing or have changed since it was saved.

    It reads all files (about a second per GB on one core). A checkpoint of an earlier version, which has no digests, is
    only checked as `missing_parts` does; that is logged.

    Args:
        folder (`str` or `Path`): such as `out/checkpoint-100`.

    Returns:
        `list[str]`: one entry per part; empty for a checkpoint that is as it was saved.
    """
    reasons = missing_parts(folder)
    if reasons:
        return reasons
    digests = read_manifest(folder).get(_DIGESTS)
    if digests is None:
        logger.info("%s has no digests of its files; only their sizes were checked", folder)
        return []
    try:
        found = _digests([Path(folder, name) for name in digests])
    except OSError as error:  # of the disk
        return [f"a file cannot be read: {error}"]
    return [
        f"{name} has changed since it was saved (SHA-256)"
        for (name, digest), own in zip(digests.items(), found, strict=True)
        if own != digest
    ]


def _digests(paths: list[Path]) -> list[str]:
    """SHA-256 of files."""
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in a manifest."""
    rest = {name: value for name, value in manifest.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
