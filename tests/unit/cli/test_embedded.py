"""Embedded members and policies by name, `demo:NAME`, wherever a command takes a folder."""

from __future__ import annotations

import io
import sys

import pytest

from hf_rlae import EnsembleForCausalLM, load_demo_members, load_demo_policy
from hf_rlae.cli.main import main
from hf_rlae.embedded import embedded_names
from hf_rlae.zoo import MEMBER_SETS, SPECIALISTS

THREE = [f"demo:{name}" for name in MEMBER_SETS["different"]]


def test_the_names_are_those_of_the_zoo(capsys):
    assert embedded_names("members") == sorted(f"demo:{name}" for name in SPECIALISTS)
    assert embedded_names("policies") == sorted(f"demo:{name}" for name in MEMBER_SETS)
    assert main(["policies"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for kind in ("members", "policies") for name in embedded_names(kind))


def test_they_generate_what_python_generates(capsys):
    given = ["generate", *THREE, "--policy", "demo:different", "--prompt", "7+5*3=", "--device", "cpu"]
    assert main([*given, "--show-weights", "--table"]) == 0
    text, *reports = capsys.readouterr().out.splitlines()
    ensemble = EnsembleForCausalLM.from_members(load_demo_members(), load_demo_policy(), span_length=2)
    ids = ensemble.generate(**ensemble.tokenizer(["7+5*3="], return_tensors="pt"), max_new_tokens=40, do_sample=False)
    assert text == ensemble.tokenizer.decode(ids[0], skip_special_tokens=True) == "7+5*3= 5*3=15; 7+15=22. 22"
    assert "■ addition-characters  ■ subtraction-bytes  ■ multiplication-pieces" in reports
    assert "demo:" not in "".join(reports)


def test_they_chat(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 7 plus 5?\nWhat is 9 minus 4?\n"))
    assert main(["chat", *THREE, "--policy", "demo:different", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [" 7 plus 5 is 12. So 12", " 9 minus 4 is 5. So 5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["demo:addition-letters"], "did you mean 'demo:"),
        (["demo:addition-bytes", "--policy", "demo:diferent"], "did you mean 'demo:different'?"),
        (["demo:addition-bytes", "--revisions", "main"], "which has no revisions"),
    ],
)
def test_other_names_are_refused(capsys, given, message):
    assert main(["generate", *given, "--prompt", "x"]) == 2
    assert message in capsys.readouterr().err
