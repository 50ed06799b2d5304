"""Compares what a model's config declares with what its files hold, before anything is allocated."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.utils import is_psutil_available

from hf_rlae.errors import HfRlaeError

WEIGHT_FILES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_COUNTS = re.compile(r"(^(num|n)_|layers?$|depth$)")
_BYTES_PER_COUNT = 64
"""What is counted in a config (layers, experts, members) has at least this many bytes of weights each."""
_MOST_UNSEEN = 10**6

_ELEMENTS_PER_BYTE = 2
"""Weights have a byte or more per element; tied weights are declared twice."""
_PACKED_ELEMENTS_PER_BYTE = 16
_MOST_BYTES_PER_LOADED = 4
"""Files in float64 can be loaded in half precision."""

_UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, RecursionError)

Fail = Callable[[str], HfRlaeError]
"""Makes the error for a reason, with the name of the owner."""


def weight_bytes(folder: Path) -> int:
    """The size of the weight files in a folder, and of those in its subfolders that an index of shards names."""
    names = {path.name for path in folder.iterdir() if path.suffix in WEIGHT_FILES}
    for index in folder.glob("*.index.json"):
        with suppress(*_UNREADABLE):
            names.update(name for name in _shard_names(index) if not leaves_folder(name))
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def check_shard_names(folder: Path, fail: Fail) -> None:
    """Raises if an index of shards in `folder` names files outside of it."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            outside = sorted(name for name in _shard_names(index) if leaves_folder(name))
        except _UNREADABLE as error:
            raise fail(f"{index.name} is not an index of weights ({type(error).__name__}: {error})") from error
        if outside:
            raise fail(
                f"{index.name} names {outside[0]!r}, a file outside of the folder; shards must lie beside their index"
            )


def _shard_names(index: Path) -> set[str]:
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def leaves_folder(name: str) -> bool:
    """Whether a relative path, in the form of any system, leads out of the folder that it is relative to.

    Example:

    >>> leaves_folder("model-1.safetensors"), leaves_folder("../model.safetensors"), leaves_folder("C:\\\\model.bin")
    (False, True, True)
    """
    return any(path.is_absolute() or path.anchor != "" or ".." in path.parts for path in _as_paths(name))


def _as_paths(name: str) -> tuple[PurePosixPath, PureWindowsPath]:
    return PurePosixPath(name), PureWindowsPath(name)


def check_counts(config: Any, held: int, fail: Fail, where: str = "") -> None:
    """Raises if a config counts more layers, experts, members or the like than the weight files can hold.

    Config classes make lists of such lengths, so this comes before the config is made.

    Args:
        config: the content of `config.json`.
        held (`int`): bytes of the weight files; 0 = unknown, as before they are downloaded.
        fail (`Fail`): makes the error.
    """
    most = max(held // _BYTES_PER_COUNT, 1024) if held else _MOST_UNSEEN
    if isinstance(config, list):
        config = dict(enumerate(config))
    for name, value in config.items():
        field = f"{where}{name}"
        if isinstance(value, dict | list):
            check_counts(value, held, fail, f"{field}.")
        elif isinstance(value, int) and _COUNTS.search(str(name)) and value > most:
            holds = f"but the weight files hold only {_size(held)}" if held else "more than any model has"
            raise fail(
                f"config.json declares {field}={value}, {holds}; they belong to another config, or it was changed"
            )


def check_download(on_hub: int, fail: Fail) -> None:
    """Raises if the weights of a repository, in any dtype in which they can be loaded, are larger than the free memory.

    Args:
        on_hub (`int`): bytes of the files that would be downloaded.
        fail (`Fail`): makes the error.
    """
    free = free_memory()
    if free is not None and on_hub > _MOST_BYTES_PER_LOADED * free:
        raise fail(
            f"its weight files have {_size(on_hub)}, and {_size(free)} of memory are free; use `device_map`, or a "
            "machine with more memory"
        )


@contextmanager
def parameter_budget(held: Callable[[], int], fail: Fail, *, is_packed: bool, checks_memory: bool) -> Iterator[None]:
    """Stops the building of a model in this thread when it declares more than its files and the memory can hold.

    transformers builds models on the meta device, where parameters have a size but no data, and counting costs nothing.

    Args:
        held (`Callable[[], int]`): the bytes of the weight files; 0 = unknown. Called when the first parameter is made.
        fail (`Fail`): makes the error.
        is_packed (`bool`): whether the files are quantised to less than a byte per element.
        checks_memory (`bool`): whether the model is for the CPU, so that its bytes are compared with the free memory.
    """
    thread = threading.get_ident()
    elements = size = 0
    limits: list[tuple[int, int | None]] = []

    def count(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal elements, size
        if threading.get_ident() != thread or not isinstance(parameter, torch.Tensor) or not parameter.is_meta:
            return
        if not limits:
            limits.append((held(), free_memory() if checks_memory else None))
        in_files, free = limits[0]
        elements += parameter.numel()
        size += parameter.numel() * parameter.element_size()
        if in_files and elements > in_files * (_PACKED_ELEMENTS_PER_BYTE if is_packed else _ELEMENTS_PER_BYTE):
            raise fail(
                f"its config declares a model of more than {elements:,} parameters, but the weight files hold only "
                f"{_size(in_files)}; they belong to another config, or the config was changed"
            )
        if free is not None and size > free:
            raise fail(
                f"it needs more than {_size(size)} of memory, and {_size(free)} are free; use a smaller dtype, "
                "`device_map`, or a machine with more memory"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def free_memory() -> int | None:
    """The bytes of memory that are free for this process; `None` where psutil is not installed."""
    if not is_psutil_available():
        return None
    import psutil  # optional: comes with accelerate

    return int(psutil.virtual_memory().available)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
