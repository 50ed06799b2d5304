#!/usr/bin/env python3
"""Audits the installed packages for known vulnerabilities (pip-audit).

Fails for vulnerabilities that are not in `ACCEPTED`. Where no index answers, it says so and does not fail, so that the
gate also runs without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys

ACCEPTED: dict[str, str] = {}
"""Vulnerabilities without a fixed version, or that cannot be reached from here: the reason, by id."""
TIMEOUT_S = 300
COMMAND = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "-f", "json"]


def main() -> int:
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return skip(f"no answer within {TIMEOUT_S} s")
    except (ValueError, KeyError):  # the service could not be reached, so there is no report
        return skip((done.stderr.strip().splitlines() or ["pip-audit gave no report"])[-1])
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return skip(f"the index knows none of {len(packages)} packages")
    found = [(package, vulnerability) for package in audited for vulnerability in package["vulns"]]
    is_open = False
    for package, vulnerability in found:
        names = {vulnerability["id"], *vulnerability.get("aliases", ())}
        reason = next((ACCEPTED[name] for name in names if name in ACCEPTED), None)
        is_open = is_open or reason is None
        fixed = ", ".join(vulnerability.get("fix_versions", ())) or "no version"
        verdict = f"accepted: {reason}" if reason else f"fixed in {fixed}"
        print(f"{package['name']} {package['version']}: {vulnerability['id']} ({verdict})")
    print(f"audited {len(audited)} of {len(packages)} packages: {len(found)} known vulnerabilities")
    return 1 if is_open else 0


def skip(reason: str) -> int:
    print(f"skipped: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
