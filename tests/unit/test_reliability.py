"""docs/reliability.md: every promise names tests that exist, and `.ci/nightly` runs them."""

from __future__ import annotations

import ast
import os

import pytest

from tests import faults, nightly
from tests.faults import FAULTS
from tests.nightly import NOT_YET, PAGE, ROOT, Promise, promises
from tests.support.tiers import IS_NIGHTLY, show_figure

ROWS = promises(PAGE.read_text(encoding="utf-8"))


def test_all_promises_have_a_row():
    assert len(ROWS) >= 34
    assert [row.number for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_names_tests_that_exist_or_says_not_yet(row):
    assert row.figure
    assert bool(row.tests) != row.figure.startswith(NOT_YET)
    for test in row.tests:
        path, *names = test.split("::")
        assert path.startswith("tests/"), test
        assert (ROOT / path).exists(), test
        scope = ast.parse((ROOT / path).read_text(encoding="utf-8")).body if names else []
        for name in names:
            found = [node for node in scope if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
            assert found, f"{test}: there is no {name}"
            scope = found[0].body


def test_the_page_can_be_found():
    assert "docs/reliability.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "reliability.md" in (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")


def test_the_nightly_script_can_be_executed():
    script = ROOT / ".ci" / "nightly"
    assert os.access(script, os.X_OK)
    assert f"-m {nightly.__name__}" in script.read_text(encoding="utf-8")


BOTH = """
from tests.support.tiers import draws, show_figure

def test_counts():
    show_figure(f"{draws(1, 9)} of 9")

def test_wrong():
    assert draws(1, 9) == 1
"""


@pytest.mark.slow
def test_the_nightly_run_draws_full_counts_and_tells_failures(tmp_path):
    (tmp_path / "test_both.py").write_text(BOTH)
    path = str(tmp_path / "test_both.py")
    is_right, told = nightly.run(Promise(7, "counts", "9", (f"{path}::test_counts",)))
    assert is_right
    assert told.splitlines()[0].startswith(" 7  1 passed in ")
    assert told.splitlines()[1].strip() == "9 of 9"
    is_right, told = nightly.run(Promise(7, "counts", "9", (path,)))
    assert not is_right
    assert "test_wrong" in told


def test_faults_can_still_be_planted():
    """Each fault names text and tests that exist; `python -m tests.faults` plants them."""
    assert len(FAULTS) >= 30
    for fault in FAULTS:
        assert fault.old in (ROOT / "hf_rlae" / fault.file).read_text(encoding="utf-8"), fault
        assert all((ROOT / test).exists() for test in fault.tests.split()), fault


@pytest.mark.slow
def test_planted_faults_are_noticed(capfd):
    """One of them in the gate, all of them in `.ci/nightly`."""
    assert faults.main([] if IS_NIGHTLY else ["4"]) == 0
    show_figure(capfd.readouterr().out.rsplit("figure: ", 1)[-1].strip())
