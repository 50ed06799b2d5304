from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_rlae.rewards.sandbox import kernel, landlock
from tests.unit.rewards.sandbox.world import has_landlock

pytestmark = pytest.mark.skipif(not has_landlock(), reason="landlock needs Linux on x86-64 with landlock")


def works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("version", range(1, 8))
def test_rules_hold_with_every_version_of_landlock(tmp_path, monkeypatch, version):
    if version > landlock.version():
        pytest.skip(f"this kernel has version {landlock.version()}")
    monkeypatch.setattr(landlock, "version", lambda: version)
    own, shown, listed, hidden = (tmp_path / name for name in ("own", "shown", "listed", "hidden"))
    for folder in (own, shown, listed, hidden):
        folder.mkdir()
        (folder / "file").write_text("x")
    server = socket.create_server(("127.0.0.1", 0))

    def truncates(folder: Path) -> bool:
        return works(lambda: os.truncate(folder / "file", 0))

    def connects() -> bool:
        return works(lambda: socket.socket().connect(server.getsockname()))

    expected = {
        "writes here": True,
        "reads what is shown": True,
        "reads what is hidden": False,
        "lists what is hidden": False,
        "lists what is listed": True,
        "reads what is listed": False,
        "writes what is shown": False,
        "writes what is hidden": False,
        "makes folders elsewhere": False,
        "links": False,
        "cuts files here": True,
        "cuts files elsewhere": version < 3,
        "connects": version < 4,
    }
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            rules = landlock.ruleset(own, [shown, tmp_path / "missing"], [listed])
            kernel.forbid_new_privileges()
            landlock.restrict(rules)
            found = {
                "writes here": works(lambda: (own / "new").write_text("x")),
                "reads what is shown": works((shown / "file").read_text),
                "reads what is hidden": works((hidden / "file").read_text),
                "lists what is hidden": works(lambda: os.listdir(hidden)),
                "lists what is listed": works(lambda: os.listdir(listed)),
                "reads what is listed": works((listed / "file").read_text),
                "writes what is shown": works(lambda: (shown / "file").write_text("y")),
                "writes what is hidden": works(lambda: (hidden / "new").write_text("y")),
                "makes folders elsewhere": works((hidden / "folder").mkdir),
                "links": works(lambda: (own / "link").symlink_to(hidden)),
                "cuts files here": truncates(own),
                "cuts files elsewhere": truncates(hidden),
                "connects": connects(),
            }
            os.write(writing, "\n".join(name for name, value in found.items() if value != expected[name]).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    wrong = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    server.close()
    assert wrong == ""


def test_a_call_that_fails_says_why():
    with pytest.raises(FileNotFoundError):
        kernel.call(2, ctypes.create_string_buffer(b"/missing"), 0)
