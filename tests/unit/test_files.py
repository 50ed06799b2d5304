"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from hf_rlae.errors import DiskFullError
from hf_rlae.files import explained_if_full, write_whole


def test_what_is_written_is_read(tmp_path):
    path = write_whole(tmp_path / "a.txt", "été\n")
    assert path.read_text(encoding="utf-8") == "été\n"
    assert write_whole(path, b"\x00\xff").read_bytes() == b"\x00\xff"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_files_have_the_rights_of_new_files(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert write_whole(tmp_path / "a", "x").stat().st_mode == plain.stat().st_mode


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "before")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_lone_surrogates_do_not_stop_it(tmp_path):
    assert write_whole(tmp_path / "a.txt", "a\ud800b").read_text() == "a?b"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(path, "text")
        assert os.read(reader, 9) == b"text"
    finally:
        os.close(reader)
    assert path.is_fifo()


def test_a_link_to_a_file_is_replaced_and_the_file_is_left_alone(tmp_path):
    """The files of a cache of the Hub are links to shared blobs."""
    blob = tmp_path / "blob"
    blob.write_text("shared")
    link = tmp_path / "README.md"
    link.symlink_to(blob)
    write_whole(link, "own")
    assert (link.read_text(), blob.read_text()) == ("own", "shared")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_path_and_bytes(tmp_path, monkeypatch, number):
    """Without space, beyond a quota or a limit on file sizes; the former file stays, and no part of the new one."""
    path = write_whole(tmp_path / "a.txt", "before")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        DiskFullError, match=rf"disk of {tmp_path} is full: a\.txt needs about 3000 bytes, and \d+ bytes"
    ):
        write_whole(path, "x" * 3000)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_full_disks_of_libraries(tmp_path):
    """PyTorch hides the reason, and the folder need not exist."""
    for write in (lambda: torch.save(torch.zeros(9), "/dev/full"), lambda: Path("/dev/full").write_text("x")):
        with (
            pytest.raises(DiskFullError, match="is full: weights needs about 36 bytes"),
            explained_if_full(tmp_path / "new" / "folder", "weights", lambda: 36),
        ):
            write()


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (
        OSError(errno.EIO, "Input/output error"),
        OSError("no number"),
        RuntimeError("CUDA error"),
        KeyError(28),
    ):
        with pytest.raises(type(error)) as caught, explained_if_full(tmp_path, "weights", lambda: 1 // 0):
            raise error
        assert caught.value is error
