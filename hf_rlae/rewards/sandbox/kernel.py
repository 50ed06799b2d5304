"""Calls of the Linux kernel for which Python has no function."""

from __future__ import annotations

import ctypes
import functools
import os

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_CAPSET = 126
_CAPABILITY_VERSION_3 = 0x20080522


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def call(number: int, *arguments: int | ctypes.Structure | ctypes.Array | None) -> int:
    """A system call by its number on x86-64; structures are passed by their address.

    Raises:
        OSError: the kernel refuses it.
    """
    passed = [
        ctypes.c_long(argument or 0)
        if argument is None or isinstance(argument, int)
        else ctypes.c_void_p(ctypes.addressof(argument))
        for argument in arguments
    ]
    result = int(_library().syscall(ctypes.c_long(number), *passed))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _prctl(option: int, value: int) -> None:
    if _library().prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def die_with_parent(signal_number: int) -> None:
    """This process gets a signal when the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def forbid_inspection() -> None:
    """This process leaves no core dump, and others of the same user cannot trace it or read its memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """Programs that this process starts gain no rights; landlock and seccomp ask for it."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Root without its rights: it is a user who owns the files of root."""
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # without rights there is nothing to drop; the kernel knows about 40
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call(_CAPSET, header, (ctypes.c_uint32 * 6)())


def processor_clock(pid: int) -> int:
    """The clock that counts the processor time of a process, for `time.clock_gettime`."""
    return ~pid << 3 | 2
