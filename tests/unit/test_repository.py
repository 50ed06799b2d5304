"""Files that others than Python read: workflows, issue forms, and the audit of installed packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_the_gate_without_rights():
    workflow = load(GITHUB / "workflows" / "gate.yml")
    steps = workflow["jobs"]["gate"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML 1.1 reads `on` as true
    assert all("@v" in step["uses"] for step in steps if "uses" in step)  # versions, not branches


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_the_fields_that_github_needs(path):
    form = load(path)
    assert form["name"]
    assert form["description"]
    questions = [entry for entry in form["body"] if entry["type"] != "markdown"]
    assert all(question["attributes"]["label"] for question in questions)
    ids = [question["id"] for question in questions]
    assert len(ids) == len(set(ids)) > 0


def test_updates_are_watched():
    watched = load(GITHUB / "dependabot.yml")["updates"]
    assert {entry["package-ecosystem"] for entry in watched} == {"github-actions", "pip"}


def package(name: str, *vulnerabilities: str, **fields: object) -> dict:
    vulns = [{"id": name, "fix_versions": ["2.0"], "aliases": ["GHSA-1"]} for name in vulnerabilities]
    return {"name": name, "version": "1.0", "vulns": vulns, **fields}


UNKNOWN = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
AUDITS = {
    # what pip-audit prints, its exit code; the exit code of the audit and its last line
    "nothing is known": ([package("a")], 0, 0, "audited 1 of 1 packages: 0 known vulnerabilities"),
    "a vulnerability": ([package("a", "PYSEC-1"), UNKNOWN], 1, 1, "audited 1 of 2 packages: 1 known vulnerabilities"),
    "an index without packages": ([UNKNOWN], 0, 0, "skipped: the index knows none of 1 packages"),
    "no index": (None, 1, 0, "skipped: connection refused"),
}


@pytest.mark.parametrize("case", AUDITS)
def test_the_audit_fails_for_vulnerabilities_only(tmp_path, case):
    packages, code, expected, line = AUDITS[case]
    report = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    (tmp_path / "pip_audit.py").write_text(
        f"import sys\nprint({report!r})\nprint('connection refused', file=sys.stderr)\nsys.exit({code})\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (expected, line), done.stderr
    assert ("fixed in 2.0" in done.stdout) == (expected == 1)
