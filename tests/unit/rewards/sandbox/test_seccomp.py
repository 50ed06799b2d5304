from __future__ import annotations

import errno

import pytest

from hf_rlae.rewards.sandbox import seccomp

KILLED, REFUSED, UNKNOWN, ALLOWED = "killed", "refused", "unknown", "allowed"
ACTIONS = {
    0x80000000: KILLED,
    0x00050000 | errno.EPERM: REFUSED,
    0x00050000 | errno.ENOSYS: UNKNOWN,
    0x7FFF0000: ALLOWED,
}
X86_64, I386 = 0xC000003E, 0x40000003


def decide(number: int, arguments: tuple[int, ...] = (), architecture: int = X86_64) -> str:
    """What the filter does with a system call: the kernel's rules for such programs, in Python."""
    data = number.to_bytes(4, "little") + architecture.to_bytes(4, "little") + bytes(8)
    data += b"".join((argument % 2**64).to_bytes(8, "little") for argument in (*arguments, *[0] * (6 - len(arguments))))
    lines, at, value = seccomp.filter_lines(), 0, 0
    while True:
        code, if_true, if_false, constant = lines[at]
        at += 1
        if code == 0x20:
            value = int.from_bytes(data[constant : constant + 4], "little")
        elif code == 0x54:
            value &= constant
        elif code == 0x06:
            return ACTIONS[constant]
        else:
            at += if_true if (value == constant if code == 0x15 else value >= constant) else if_false


CASES = [
    # number, arguments, what happens, why
    (0, (), ALLOWED, "read"),
    (257, (), ALLOWED, "openat: landlock guards it"),
    (57, (), REFUSED, "fork"),
    (56, (0x3D0F00,), REFUSED, "clone of a thread"),
    (435, (), UNKNOWN, "clone3: the C library then tries clone"),
    (59, (), REFUSED, "execve"),
    (41, (1, 1, 0), REFUSED, "socket"),
    (90, (), REFUSED, "chmod: landlock does not guard it"),
    (425, (), REFUSED, "io_uring_setup"),
    (451, (), UNKNOWN, "newer than the list"),
    (0x40000000, (), KILLED, "read of x32"),
    (0xFFFFFFFF, (), KILLED, "a negative number"),
    (72, (3, 1), ALLOWED, "fcntl F_GETFD"),
    (72, (3, 1030), ALLOWED, "fcntl F_DUPFD_CLOEXEC"),
    (72, (3, 8), REFUSED, "fcntl F_SETOWN: signals for others"),
    (72, (3, 1031), REFUSED, "fcntl F_SETPIPE_SZ"),
    (16, (3, 0x5401), ALLOWED, "ioctl TCGETS: isatty"),
    (16, (0, 0x5412), REFUSED, "ioctl TIOCSTI: types into a terminal"),
    (16, (3, 0x8901), REFUSED, "ioctl FIOSETOWN: signals for others"),
    (53, (1, 1), ALLOWED, "socketpair of streams"),
    (53, (1, 1 | 0o2004000), ALLOWED, "socketpair of streams, not inherited, not waiting"),
    (53, (1, 2), REFUSED, "socketpair of packets, which may have an address"),
    (53, (1, 5), REFUSED, "socketpair of packets in order"),
    (53, (2, 1), REFUSED, "socketpair of the internet"),
    (204, (0,), ALLOWED, "sched_getaffinity of itself"),
    (204, (1,), REFUSED, "sched_getaffinity of others"),
    (302, (0, 7, 0, 1), ALLOWED, "prlimit64 that reads its own limits"),
    (302, (1, 7, 0, 1), REFUSED, "prlimit64 of others"),
    (302, (0, 7, 4096, 0), REFUSED, "prlimit64 that sets limits"),
    (302, (0, 7, 2**32, 0), REFUSED, "prlimit64 that sets limits, at an address whose lower half is 0"),
    (228, (1,), ALLOWED, "clock_gettime, monotonic"),
    (228, (2,), ALLOWED, "clock_gettime, its own processor time"),
    (228, (~1234 << 3 | 2,), REFUSED, "clock_gettime, the processor time of others"),
    (230, (11,), ALLOWED, "clock_nanosleep"),
]


@pytest.mark.parametrize(("number", "arguments", "action", "why"), CASES, ids=[case[3] for case in CASES])
def test_the_filter_decides_each_call(number, arguments, action, why):
    assert decide(number, arguments) == action


@pytest.mark.parametrize("architecture", [I386, 0, 0xC00000B7])
def test_calls_of_other_architectures_kill(architecture):
    assert decide(0, architecture=architecture) == KILLED


def test_no_call_is_allowed_that_is_not_on_the_list():
    with_arguments = {72, 16, 53, 204, 302, 228, 229, 230}
    allowed = {number for number in range(1000) if decide(number, (-1, -1, -1)) == ALLOWED}
    assert allowed == set(seccomp.ALLOWED.values())
    assert not allowed & with_arguments
    assert len(seccomp.ALLOWED) == len(allowed)


def test_jumps_stay_inside_the_filter():
    lines = seccomp.filter_lines()
    assert all(at + 1 + max(line[1], line[2]) < len(lines) for at, line in enumerate(lines) if line[0] in (0x15, 0x35))
    assert all(0 <= jump < 256 for line in lines for jump in line[1:3])
    assert len(lines) <= 4096
