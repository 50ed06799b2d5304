from __future__ import annotations

import os

import pytest

from hf_rlae.rewards.sandbox import folders


def test_files_and_folders_are_counted_up_to_a_limit(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    assert not folders.holds_more_than(tmp_path, 3)
    assert folders.holds_more_than(tmp_path, 2)


def test_links_are_not_followed(tmp_path):
    (tmp_path / "large").mkdir()
    for number in range(5):
        (tmp_path / "large" / str(number)).touch()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path / "large")
    assert not folders.holds_more_than(tmp_path / "own", 1)
    folders.empty(tmp_path / "own")
    assert os.listdir(tmp_path / "own") == []
    assert len(os.listdir(tmp_path / "large")) == 5


def deep(folder, levels, name):
    """Folders in one another, deeper than a path may be long."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(levels):
            os.mkdir(name)
            os.chdir(name)
        open("last", "w").close()
    finally:
        os.fchdir(before)
        os.close(before)


@pytest.mark.parametrize(("levels", "name"), [(3, "x"), (60, "d" * 200), (300, "x" * 20)])
def test_what_is_deep_is_emptied_and_seen(tmp_path, levels, name):
    deep(tmp_path, levels, name)
    assert folders.holds_more_than(tmp_path, levels)
    folders.empty(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_nobody_may_enter_is_emptied(tmp_path):
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "closed" / "file").touch()
    (tmp_path / "closed" / "inner").chmod(0)
    (tmp_path / "closed").chmod(0)
    folders.empty(tmp_path)
    assert os.listdir(tmp_path) == []


def test_names_that_emptying_uses_itself_do_not_disturb_it(tmp_path):
    for name in ("moved-0", "moved-1", "other"):
        (tmp_path / name / "moved-0" / "moved-1").mkdir(parents=True)
        (tmp_path / name / "file").touch()
    folders.empty(tmp_path)
    assert os.listdir(tmp_path) == []
