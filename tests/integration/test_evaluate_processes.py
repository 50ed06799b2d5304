"""`evaluate` in two processes of accelerate, and in processes that are killed."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from hf_rlae import evaluate, load_demo_members
from tests.support.processes import finish, start, start_two

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {"limit": 5, "batch_size": 2, "max_new_tokens": 12, "progress": False}


def run(folder: str, written: str, environment: dict[str, str] | None = None, pause_s: float = 0.0) -> None:
    """Evaluates, and writes the values and completions of this process's report."""
    os.environ.update(environment or {})

    def words(prompts: list[str]) -> list[str]:
        time.sleep(pause_s)
        return [prompt[::-1] for prompt in prompts]

    report = evaluate(
        load_demo_members("shared")[:2], "arithmetic_chain", methods={"f": words}, output_dir=folder, **OPTIONS
    )
    texts = {name: [record["text"] for record in rows] for (_, name), rows in report.records.items()}
    values = {result.method: (result.value, result.num_questions) for result in report.results}
    with open(f"{written}.{os.environ.get('RANK', 'alone')}", "w", encoding="utf-8") as file:
        json.dump([texts, values], file)


def test_two_processes_find_what_one_finds(tmp_path):
    assert finish([start(run, str(tmp_path / "one"), str(tmp_path / "report"))]) == [0]
    assert finish(start_two(run, str(tmp_path / "two"), str(tmp_path / "report"))) == [0, 0]
    alone, first, second = (
        json.loads((tmp_path / f"report.{name}").read_text(encoding="utf-8")) for name in ("alone", "0", "1")
    )
    assert first == second == alone
    files = sorted(path.name for path in (tmp_path / "two").glob("*.jsonl"))
    assert len(files) == 6  # three methods, each in one file per process
    lines = [len((tmp_path / "two" / name).read_text(encoding="utf-8").splitlines()) - 1 for name in files]
    assert sorted(lines) == [2, 2, 2, 3, 3, 3]


def test_a_killed_process_loses_no_batch_that_was_done(tmp_path):
    process = start(run, str(tmp_path / "killed"), str(tmp_path / "report"), pause_s=1.0)
    end = time.monotonic() + 120
    paths: list[Any] = []
    while not paths and time.monotonic() < end:
        time.sleep(0.02)
        paths = list((tmp_path / "killed").glob("*-f-*.jsonl"))
    process.kill()
    process.join()
    before = paths[0].read_bytes()
    assert finish([start(run, str(tmp_path / "killed"), str(tmp_path / "report"))]) == [0]
    assert paths[0].read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(paths[0].read_text(encoding="utf-8").splitlines()) == 6
