"""`hf-rlae demo`: which chains it accepts, and what it says of the answer. The demo itself runs in the slow tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from hf_rlae import load_demo_members, load_demo_policy
from hf_rlae.cli import demonstration
from hf_rlae.cli.main import main


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("12+7*4", "numbers from 1 to 9 in chains of several operators"),
        ("7+0*4", "numbers from 1 to 9 in chains of several operators"),
        ("9*9*9", "is not between 0 and 99"),
        ("3-9", "is not between 0 and 99"),
        ("7+", "is not a chain"),
        ("7/5", "is not a chain"),
    ],
)
def test_chains_that_nobody_was_trained_on_are_refused(chain, message, capsys, monkeypatch):
    monkeypatch.setattr(demonstration, "show", lambda args: pytest.fail("it was accepted"))
    assert main(["demo", "--chain", chain]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "chain", "said"),
    [
        ("different", "7+5*3", "The answer, 22, is right."),
        ("different", "12+30", "The answer, 42, is right."),
        ("shared", "9-4+2*6=", "The answer, 17, is right."),  # the command of the quick start
        ("shared", "9*5-7", "The answer is wrong: 9*5-7 is 38."),
    ],
)
def test_the_answer_is_judged_and_the_picture_is_where_it_says(kind, chain, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console = Console(record=True, width=80, file=(tmp_path / "out").open("w"))
    args = SimpleNamespace(chain=chain, picture="weights.png")
    demonstration._write_one(console, load_demo_members(kind), load_demo_policy(kind), args)
    shown = console.export_text()
    assert said in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("The picture")]
    assert Path(line.rpartition(" is in ")[2]) == tmp_path / "weights.png"
    assert (tmp_path / "weights.png").is_file()
