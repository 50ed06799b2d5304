"""The README: short, its commands work as they stand, and its figures are those of the results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_rlae.cards import citations
from hf_rlae.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^\.venv/bin/hf-rlae (.*)$", BLOCKS, re.MULTILINE)


def test_it_is_short():
    assert README.count("\n") <= 200


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("generate")])
def test_a_command_works_as_it_stands(command, capsys):
    assert main(shlex.split(command)) == 0
    assert "5*3= 5*3=15. 15" in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)


def test_the_two_commands_are_there():
    assert [command.split()[0] for command in COMMANDS] == ["demo", "generate"]


def test_figures_are_those_of_the_results():
    table = (ROOT / "docs" / "results" / "rlae" / "different.md").read_text(encoding="utf-8")
    at_two = {
        cells[1].strip(): cells[5].strip()
        for cells in (line.split("|") for line in table.splitlines())
        if len(cells) > 6
    }
    alone = max(value for name, value in at_two.items() if name.endswith(" alone"))
    names = ["uniform weights", "best fixed weights", "ppo (gae)", "mappo (gae)", "mixture", "oracle switching"]
    row = re.search(r"^\|---:\|.*\n\| (.*) \|$", README, re.MULTILINE)[1].split(" | ")
    assert row == [alone, *(at_two[name] for name in names)]


@pytest.mark.parametrize("entry", [citations.RLAE, citations.CORY])
def test_both_papers_are_cited(entry):
    assert entry in README
