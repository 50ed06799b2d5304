"""The system calls that a worker may make, as a filter in the kernel's own language.

pyseccomp of PyPI is not used: its last release is of 2021, and it needs the C library libseccomp on the machine. The
filter here is a list of about a hundred numbers, for x86-64 only.

Other calls fail with "not permitted", so that a program sees an ordinary exception. What is missing on purpose:

* processes and threads (fork, clone, execve), signals to any process, tracing, priorities and limits of others;
* sockets, except pairs of connected ones, which have no address; queues, shared memory and keys of System V and POSIX;
* rights and times of files (landlock does not guard them), links, devices, mounts, memory files;
* io_uring, bpf, userfaultfd, perf, and each call that is newer than this list.
"""

from __future__ import annotations

import ctypes
import errno

from hf_rlae.rewards.sandbox import kernel

_SECCOMP, _SET_FILTER = 317, 1
_ARCHITECTURE = 0xC000003E  # x86-64
_X32 = 0x40000000
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST = 0x15, 0x35
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

# fmt: off
ALLOWED = {
    # files and folders, which landlock guards
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8, "pread64": 17,
    "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "sendfile": 40, "ftruncate": 77, "getcwd": 79,
    "chdir": 80, "fchdir": 81, "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "readlink": 89, "umask": 95,
    "getdents64": 217, "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264,
    "readlinkat": 267, "faccessat": 269, "statx": 332, "faccessat2": 439,
    # descriptors, and waiting for them
    "poll": 7, "pipe": 22, "select": 23, "dup": 32, "dup2": 33, "sendto": 44, "recvfrom": 45, "shutdown": 48,
    "epoll_create": 213, "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270, "ppoll": 271, "epoll_pwait": 281,
    "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    # its own memory
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "msync": 26, "madvise": 28,
    # its own signals and timers
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pause": 34, "nanosleep": 35, "getitimer": 36,
    "alarm": 37, "setitimer": 38, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130,
    "sigaltstack": 131, "restart_syscall": 219,
    # what it is, and what time it is
    "sched_yield": 24, "getpid": 39, "exit": 60, "uname": 63, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98,
    "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111,
    "getgroups": 115, "gettid": 186, "time": 201, "futex": 202, "set_tid_address": 218, "exit_group": 231,
    "set_robust_list": 273, "getrandom": 318, "rseq": 334,
}
# fmt: on
_MISSING = {"clone3": 435, "close_range": 436, "openat2": 437}
"""The C library tries these first and then others, if the kernel does not know them."""
_NEWEST = 450
_FCNTL, _IOCTL, _SOCKETPAIR, _SCHED_GETAFFINITY, _PRLIMIT64 = 72, 16, 53, 204, 302
_CLOCK_GETTIME, _CLOCK_GETRES, _CLOCK_NANOSLEEP = 228, 229, 230
_DUPLICATE_AND_FLAGS = (0, 1, 2, 3, 4, 1030)
_TERMINAL_AND_FLAGS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_CLOCKS = range(12)  # the clocks of other processes have negative numbers


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


_Lines = list[tuple[int, int, int, int]]


def _return(action: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, action)


def _argument(index: int, is_high: bool = False) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + 4 * is_high)


def _one_of(index: int, values: range | tuple[int, ...]) -> _Lines:
    """Allows a call if one of its arguments is one of these numbers."""
    lines = [_argument(index)]
    for value in values:
        lines += [(_IF_EQUAL, 0, 1, value), _return(_ALLOW)]
    return lines


def _with_arguments() -> dict[int, _Lines]:
    zero, stream = (_IF_EQUAL, 0, 1, 0), 1
    not_waiting_nor_inherited = 0xFFFFFFFF & ~0o2004000
    # a check that fails jumps over the next line, which the last check makes an "allow"
    pair = [_argument(0), (_IF_EQUAL, 0, 4, 1), _argument(1), (_AND, 0, 0, not_waiting_nor_inherited)]
    own_limits = [_argument(0), (_IF_EQUAL, 0, 5, 0), _argument(2), (_IF_EQUAL, 0, 3, 0), _argument(2, True)]
    return {
        _FCNTL: _one_of(1, _DUPLICATE_AND_FLAGS),
        _IOCTL: _one_of(1, _TERMINAL_AND_FLAGS),
        _SOCKETPAIR: [*pair, (_IF_EQUAL, 0, 1, stream), _return(_ALLOW)],
        _SCHED_GETAFFINITY: _one_of(0, (0,)),
        _PRLIMIT64: [*own_limits, zero, _return(_ALLOW)],
        **{clock: _one_of(0, _CLOCKS) for clock in (_CLOCK_GETTIME, _CLOCK_GETRES, _CLOCK_NANOSLEEP)},
    }


def filter_lines() -> _Lines:
    """The filter: code, lines to skip if true, lines to skip if false, value."""
    refused, unknown = _return(_REFUSE | errno.EPERM), _return(_REFUSE | errno.ENOSYS)
    lines = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_IF_EQUAL, 1, 0, _ARCHITECTURE), _return(_KILL)]
    lines += [(_LOAD, 0, 0, _NUMBER_AT), (_IF_AT_LEAST, 0, 1, _X32), _return(_KILL)]
    for number in ALLOWED.values():
        lines += [(_IF_EQUAL, 0, 1, number), _return(_ALLOW)]
    for number in _MISSING.values():
        lines += [(_IF_EQUAL, 0, 1, number), unknown]
    lines += [(_IF_AT_LEAST, 0, 1, _NEWEST + 1), unknown]
    for number, checks in _with_arguments().items():
        lines += [(_IF_EQUAL, 0, len(checks) + 1, number), *checks, refused]
    return [*lines, refused]


def compiled() -> ctypes.Array:
    """The filter for `install`."""
    lines = filter_lines()
    return (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))


def install(instructions: ctypes.Array) -> None:
    """From now on, this process can make only the calls that the filter allows."""
    program = _Program(len(instructions), ctypes.addressof(instructions))
    kernel.call(_SECCOMP, _SET_FILTER, 0, program)
