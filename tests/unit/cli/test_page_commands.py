"""Every command of the page of the command line runs as it is written there, in one folder, in the page's order."""

from __future__ import annotations

import io
import shlex
import sys
from types import SimpleNamespace

import pytest

from hf_rlae.cli import demonstration, serving_process
from hf_rlae.cli.main import main
from tests.unit.cli.test_documentation import ROOT, blocks, commands

PAGE = ROOT / "docs" / "cli.md"
SAYS = {
    # a part of the command, and of what it prints
    "--weights 0.3,0.7": "5*3= 5*3=15. 15\n",
    "--policy demo:shared": "7+5*3= 5*3=15; 7+15=22. 22\n",
    "12 plus 30": " 12 plus 30 is 42. So 42\n",
    "--num-beams 3": "What is 7 plus 5? 7 plus 5 is 12. So 12\n",
    "| hf-rlae chat": " 7 plus 5 is 12. So 12\n",
    "hf-rlae serve": "serving mine on http://127.0.0.1:",
    "hf-rlae train": "evaluation: ",
    "--policy my-policy": "7+5*3= ",
    "hf-rlae push": "pushed the ensemble to ",
    "hf-rlae pull": "pulled the ensemble user/my-ensemble at ",
    "generate pulled": "7+5*3= 5*3=15; 7+15=22. 22\n",
}


@pytest.mark.slow
def test_every_command_runs_as_it_is_written(tmp_path, monkeypatch, capsys, hub):
    monkeypatch.chdir(tmp_path)
    shown, answered = [], []
    monkeypatch.setattr(demonstration, "show", shown.append)  # the demo takes a minute, and has tests of its own
    server = SimpleNamespace(run=lambda sockets: answered.append(sockets))
    monkeypatch.setattr(serving_process, "build_http_server", lambda app, limits: server)
    (saving,) = [block for block in blocks(PAGE, "py") if "save_pretrained" in block]
    exec(compile(saving, str(PAGE), "exec"), {})
    capsys.readouterr()
    said = {}
    for line in commands([PAGE]):
        given, _, command = line.rpartition("| ")
        typed = shlex.split(given)[1:]
        raw = "".join(f"{text}\n" for text in typed).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        arguments = shlex.split(command)[1:]
        if "--port" in arguments:
            arguments += ["--port", "0"]  # 8000 may be taken
        assert main(arguments) == 0, (line, capsys.readouterr().err)
        said[line] = capsys.readouterr().out
    assert len(shown) == len(answered) == 1
    for part, expected in SAYS.items():
        (line,) = [line for line in said if part in line]
        assert expected in said[line], line
