"""Runs the tests of docs/reliability.md with full counts and prints what each row shows: `.ci/nightly [ROW ...]`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
NOT_YET = "not yet"


@dataclass(frozen=True)
class Promise:
    """One row of the page.

    Attributes:
        number (`int`): as in the page.
        promise (`str`), figure (`str`): these cells; the figure begins with "not yet" if nothing shows the promise.
        tests (`tuple[str, ...]`): arguments for pytest, empty if nothing shows the promise.
    """

    number: int
    promise: str
    figure: str
    tests: tuple[str, ...]


def promises(page: str) -> list[Promise]:
    """The rows of the tables of a page: number, promise, how it is shown, figure, tests."""
    found = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 5 and cells[0].isdigit():
            found.append(Promise(int(cells[0]), cells[1], cells[3], tuple(re.findall(r"`([^`]+)`", cells[4]))))
    return found


def run(promise: Promise) -> tuple[bool, str]:
    """Whether the tests of a promise passed, and a line about them with the figures that they print."""
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-p", "no:warnings", "--no-header"]
    environment = {**os.environ, "HF_RLAE_NIGHTLY": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [*command, *promise.tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    figures = re.findall(r"figure: (.+)", done.stdout)
    counted = re.findall(r"\d+ (?:passed|skipped)", done.stdout.rsplit("\n", 2)[-2]) if done.returncode == 0 else []
    verdict = ", ".join(counted) if counted else f"FAILED ({', '.join(failed) or done.stdout[-300:]})"
    told = f"{promise.number:>2}  {verdict} in {time.monotonic() - began:.0f} s: {promise.promise}"
    return done.returncode == 0, "\n".join([told, *(f"      {figure}" for figure in figures)])


def main(arguments: list[str]) -> int:
    wanted = {int(argument) for argument in arguments}
    is_whole = True
    for promise in promises(PAGE.read_text(encoding="utf-8")):
        if wanted and promise.number not in wanted:
            continue
        if not promise.tests:
            told = f"{promise.number:>2}  {NOT_YET}: {promise.promise}"
        else:
            is_right, told = run(promise)
            is_whole = is_whole and is_right
        print(told, flush=True)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
