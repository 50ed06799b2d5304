"""All tasks of MBPP: their reference programs are paid, and constant answers are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache

import pytest

from hf_rlae.rewards import get_reward
from hf_rlae.rewards.answer_part import Graded
from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.sandbox.used_names import used_names
from tests.conftest import shared_path
from tests.support.sandboxes import some_sandbox
from tests.support.tiers import IS_NIGHTLY, show_figure
from tests.unit.rewards.sandbox.cheats import FALSE_EQUAL

pytestmark = pytest.mark.slow

CONSTANTS = {
    "an object that equals everything": FALSE_EQUAL.format(base="") + "    __hash__ = None\nanswer = Equal()\n",
    "None": "answer = None\n",
    "zero": "answer = 0\n",
    "a word": "answer = 'wrong'\n",
}
LOAD = 8


@cache
def tasks():
    """All rows; outside of `.ci/nightly`, constant answers go to every eighth."""
    path = shared_path("data", "mbpp", "mbpp.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def verdicts(rows, programs, has_reference=True):
    """By `task_id`, what the reward `mbpp` says of one program per row."""
    some_sandbox()  # or the test is skipped
    columns = {"completions": programs, "test_list": [row["test_list"] for row in rows]}
    columns["test_setup_code"] = [row["test_setup_code"] for row in rows]
    if has_reference:
        columns["answer"] = [row["code"] for row in rows]
    parts = [Graded(program) for program in programs]
    found = get_reward("mbpp").judge_parts(parts, Batch("mbpp", len(rows), columns))
    return {row["task_id"]: verdict for row, verdict in zip(rows, found, strict=True)}


def not_paid(has_reference=True):
    rows = tasks()
    found = verdicts(rows, [row["code"] for row in rows], has_reference)
    return {number: verdict.reason for number, verdict in found.items() if not verdict.passed}


@pytest.mark.parametrize("has_reference", [True, False], ids=["columns of the task", "tests alone"])
def test_all_references_are_paid(has_reference):
    """Both times; in the second, the names are sorted without the reference."""
    start = time.perf_counter()
    found = not_paid(has_reference)
    seconds = time.perf_counter() - start
    show_figure(f"{len(tasks()) - len(found)} of {len(tasks())} references are paid, in {seconds:.0f} s")
    assert found == {}


@pytest.mark.skipif(not IS_NIGHTLY, reason="a busy machine disturbs the other tests; .ci/nightly runs it")
def test_all_references_are_paid_on_a_busy_machine():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOAD)]
    try:
        for turn in (1, 2):
            found = not_paid()
            load = os.getloadavg()[0]
            show_figure(f"turn {turn}: {len(tasks()) - len(found)} of {len(tasks())} are paid at a load of {load:.0f}")
            assert found == {}
    finally:
        for each in busy:
            each.kill()
            each.wait()


@pytest.mark.parametrize("constant", CONSTANTS)
def test_no_constant_is_paid(constant):
    rows = tasks() if IS_NIGHTLY else tasks()[::8]
    names = [used_names("\n".join([row["test_setup_code"], *row["test_list"]]), row["code"]).program for row in rows]
    programs = [
        CONSTANTS[constant] + "".join(f"def {name}(*args, **kwargs): return answer\n" for name in of_row)
        for of_row in names
    ]
    found = verdicts(rows, programs)
    paid = [number for number, verdict in found.items() if verdict.passed]
    show_figure(f"{constant}: {len(paid)} of {len(rows)} are paid")
    assert paid == []
    assert [number for number, verdict in found.items() if verdict.passed is None] == []
