"""`.ci/lowest.txt`, with which `.ci/run` runs the unit tests, holds the lower bounds of `pyproject.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("quality", "docs", "demo")
EXTRAS = {name: entries for name, entries in PROJECT["optional-dependencies"].items() if name not in TOOLS}
REQUIREMENTS = {
    str(requirement): requirement
    for entry in sum(EXTRAS.values(), PROJECT["dependencies"])
    if (requirement := Requirement(entry)).name not in ("hf_rlae", "torch")  # torch: see the file
}
LINES = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()]
PINS = dict(line.split("==") for line in LINES if line)


@pytest.mark.parametrize("requirement", REQUIREMENTS.values(), ids=REQUIREMENTS)
def test_every_lower_bound_is_pinned(requirement):
    (lowest,) = (Version(entry.version).release for entry in requirement.specifier if entry.operator == ">=")
    pinned = Version(PINS[requirement.name]).release
    assert pinned[: len(lowest)] == lowest  # 3.0.2 is the first release of `>=3`
    assert not any(pinned[len(lowest) : -1])


def test_torch_is_the_version_of_the_other_tests():
    assert f"torch=={PINS['torch']}" in (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
