"""Results of questions on disk."""

from __future__ import annotations

import errno
import json

import pytest

from hf_rlae import ConfigError, DiskFullError
from hf_rlae.evaluation.records import RecordStore

SETUP = {"method": "m", "seed": 0}


def record(key, score=1.0):
    return {"key": key, "score": score}


def test_what_was_appended_is_read(tmp_path):
    store = RecordStore(tmp_path / "new", "task-method", SETUP)
    assert store.read() == {}
    store.append([record("a"), record("b", None)])
    store.append([record("c")])
    assert RecordStore(tmp_path / "new", "task-method", SETUP).read() == {
        "a": record("a"),
        "b": record("b", None),
        "c": record("c"),
    }
    first = json.loads(store.path.read_text().splitlines()[0])
    assert first == {"setup": SETUP}


@pytest.mark.parametrize("kept", range(1, 20))
def test_a_torn_line_is_ignored_and_cut_off(tmp_path, kept):
    """However many bytes of the last line a killed process has written."""
    store = RecordStore(tmp_path, "task", SETUP)
    store.append([record("a")])
    whole = store.path.read_bytes()
    store.append([record("b")])
    store.path.write_bytes(store.path.read_bytes()[: len(whole) + kept])
    again = RecordStore(tmp_path, "task", SETUP)
    assert list(again.read()) == ["a"]
    again.append([record("c")])
    assert list(again.read()) == ["a", "c"]


@pytest.mark.parametrize("kept", [0, 1, 12])
def test_a_torn_first_line_starts_again(tmp_path, kept):
    store = RecordStore(tmp_path, "task", SETUP)
    store.append([record("a")])
    store.path.write_bytes(store.path.read_bytes()[:kept])
    again = RecordStore(tmp_path, "task", SETUP)
    assert again.read() == {}
    again.append([record("b")])
    assert list(again.read()) == ["b"]


def test_another_setup_has_another_file(tmp_path):
    RecordStore(tmp_path, "task", SETUP).append([record("a")])
    assert RecordStore(tmp_path, "task", {**SETUP, "seed": 1}).read() == {}


def test_processes_append_to_their_own_files_and_read_all(tmp_path):
    for rank, key in enumerate("ab"):
        RecordStore(tmp_path, "task", SETUP, rank).append([record(key)])
    assert sorted(RecordStore(tmp_path, "task", SETUP, 5).read()) == ["a", "b"]


def test_names_of_any_kind_become_file_names(tmp_path):
    store = RecordStore(tmp_path, "owner/task: weights .5,.5\n", SETUP)
    store.append([record("a")])
    assert store.path.parent == tmp_path
    assert list(store.read()) == ["a"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output_dir"):
        RecordStore(tmp_path / "file", "task", SETUP)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    store = RecordStore(tmp_path, "task", SETUP)

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_rlae.evaluation.records.os.fsync", full)
    with pytest.raises(DiskFullError, match="is full"):
        store.append([record("a")])
