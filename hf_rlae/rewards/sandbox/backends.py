"""How a zygote is started: inside bubblewrap, by itself, or by itself with workers that nothing locks down."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

from hf_rlae.rewards.sandbox import landlock

BACKENDS = ("bubblewrap", "landlock")
"""In the order in which they are tried. In both, landlock and seccomp lock workers down."""
UNSAFE = "unsafe"
UNSAFE_VARIABLE = "HF_RLAE_UNSAFE_SANDBOX"
"""The environment variable that, set to 1, confirms `unsafe=True`."""
_PACKAGE = Path(__file__).resolve().parent
_SCRATCH_BYTES = 256 * 2**20
_PROGRAM = """\
import sys, types
for name in ("hf_rlae", "hf_rlae.rewards", "hf_rlae.rewards.sandbox"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].__path__ = [sys.argv[1]]
from hf_rlae.rewards.sandbox.zygote import main
main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "isolated")
"""
# bubblewrap waits for the end of its child for ever if its caller ignores SIGCHLD
_WITH_SIGCHLD = """\
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def missing(backend: str) -> str:
    """Why a backend cannot work on this machine, as far as this is known without a try; empty if it may."""
    if sys.platform != "linux":
        return f"it needs Linux, not {sys.platform}"
    if not hasattr(os, "pidfd_open"):
        return "it needs a Python that knows pidfd_open"
    if backend == UNSAFE:
        return ""
    if platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return f"it needs x86-64, not {platform.machine()}"
    try:
        landlock.version()
    except OSError as error:
        return f"the kernel has no landlock: {error.strerror}"
    if backend == "bubblewrap" and not shutil.which("bwrap"):
        return "bwrap is not installed; try `apt-get install bubblewrap`"
    return ""


def command(backend: str, scratch: str, control: int, caller: int) -> list[str]:
    """The program that starts a zygote.

    Args:
        backend (`str`): one of `BACKENDS`, or `UNSAFE`.
        scratch (`str`): an empty folder for the workers; bubblewrap hides it behind one in memory.
        control (`int`), caller (`int`): descriptors that the zygote inherits.
    """
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    # no user site, no site-packages, no current folder, no compiled files
    program = [python, "-s", "-S", "-P", "-B", "-c", _PROGRAM, str(_PACKAGE), str(control), str(caller), scratch]
    program.append("unsafe" if backend == UNSAFE else "isolated")
    if backend != "bubblewrap":
        return program
    first = [python, "-E", "-S", "-c", _WITH_SIGCHLD] if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN else []
    return [*first, *_bubblewrap(python, scratch), *program]


def _bubblewrap(python: str, scratch: str) -> list[str]:
    """An empty root with the system's libraries, Python's, and this folder, all read-only; nothing else."""
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--as-pid-1", "--cap-drop", "ALL", "--hostname", "sandbox"]
    for name in ("usr", "lib", "lib64", "bin"):
        path = Path("/") / name
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.exists():
            arguments += ["--ro-bind", str(path), str(path)]
    shown = {python, sys.base_prefix, sys.base_exec_prefix, str(_PACKAGE)}
    shown |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    for place in sorted(map(os.path.realpath, shown)):  # a folder before what is in it
        if not place.startswith("/usr/") and place != "/":
            arguments += ["--ro-bind", place, place]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--dev-bind", "/dev/null", "/dev/null"]
    return ["bwrap", *arguments, "--size", str(_SCRATCH_BYTES), "--tmpfs", scratch, "--chdir", "/"]
