"""Access to files by landlock, which works without rights: what no rule allows is refused.

The package `landlock` of PyPI is not used: its releases are development versions, and its rules know neither sockets
nor signals, which this module refuses too where the kernel can.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from hf_rlae.rewards.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_TRUNCATE = 1 << 14
_FIRST_ACCESSES = (1 << 13) - 1
_LATER_ACCESSES = ((2, 1 << 13), (3, _TRUNCATE), (5, 1 << 15))  # since which version; moving, truncating, devices
_TCP, _SCOPES = 0b11, 0b11  # binding and connecting; abstract sockets and signals
_READ = _READ_FILE | _READ_DIR
_FOLDER = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG


class _Attributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _Rule(ctypes.Structure):
    _fields_ = [("accesses", ctypes.c_uint64), ("descriptor", ctypes.c_int32)]


def version() -> int:
    """The version of landlock in this kernel.

    Raises:
        OSError: it has none.
    """
    return kernel.call(_CREATE_RULESET, None, 0, _VERSION_FLAG)


def ruleset(folder: Path, readable: Iterable[Path], listable: Iterable[Path] = ()) -> int:
    """Rules that allow to read some paths, and to use one folder.

    Args:
        folder (`Path`): regular files and folders in it may be made, read, changed and removed.
        readable (iterable of `Path`): files and folders; missing ones are left out.
        listable (iterable of `Path`): folders in which, and below which, names may be listed.

    Returns:
        `int`: a descriptor for `restrict`.
    """
    known = version()
    accesses = _FIRST_ACCESSES
    for since, access in _LATER_ACCESSES:
        accesses |= access if known >= since else 0
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    attributes = _Attributes(accesses, _TCP if known >= 4 else 0, _SCOPES if known >= 6 else 0)
    rules = kernel.call(_CREATE_RULESET, attributes, size, 0)
    for path in readable:
        _allow(rules, path, _READ if path.is_dir() else _READ_FILE)
    for path in listable:
        _allow(rules, path, _READ_DIR)
    _allow(rules, folder, _FOLDER | (_TRUNCATE & accesses))
    return rules


def _allow(rules: int, path: Path, accesses: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        kernel.call(_ADD_RULE, rules, _PATH_BENEATH, _Rule(accesses, descriptor), 0)
    finally:
        os.close(descriptor)


def restrict(rules: int) -> None:
    """From now on, this process can do only what the rules allow."""
    kernel.call(_RESTRICT_SELF, rules, 0)
