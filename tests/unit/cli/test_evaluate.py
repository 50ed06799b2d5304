"""`hf-rlae evaluate`."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console

from hf_rlae.cli import evaluation
from hf_rlae.cli.main import main
from hf_rlae.zoo import MEMBER_SETS
from hf_rlae.zoo.loader import MEMBERS_FOLDER

MEMBERS = [str(MEMBERS_FOLDER / name) for name in MEMBER_SETS["shared"][:2]]


def test_the_table_and_the_files(tmp_path, capsys):
    arguments = ["--task", "arithmetic_chain", "--limit", "2", "--max-new-tokens", "4", "--method", "uniform"]
    assert main(["evaluate", *MEMBERS, *arguments, "--output", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "arithmetic_chain" in shown
    assert "uniform" in shown
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [result["method"] for result in content["results"]] == [*MEMBER_SETS["shared"][:2], "uniform"]
    assert content["settings"]["max_new_tokens"] == 4
    assert {"results.md", "results.csv", "results.png"} < {path.name for path in (tmp_path / "new").iterdir()}


HEADINGS = ["method", "accuracy", "95% interval", "against best member", "tokens/question", "s/question"]
METHODS = ["Some-Model-135M-Instruct-2026-11-30", "Some-Model-135M-Instruct-2026-12-01", "ensemble"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stdout", "columns"), [(Terminal, 80), (Terminal, 200), (io.StringIO, 80)])
def test_tables_fit_the_terminal_and_cut_no_name(monkeypatch, stdout, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(evaluation, "Console", partial(Console, color_system=None))
    monkeypatch.setattr(sys, "stdout", stdout())
    rows = [[name, f"0.{at}", "0.100 to 0.900", "+0.000", "8.0", "0.005"] for at, name in enumerate(METHODS)]
    evaluation.print_report(SimpleNamespace(tables=lambda: {"gsm8k": [HEADINGS, *rows]}, notes=[]))
    lines = sys.stdout.getvalue().splitlines()
    is_whole = stdout is io.StringIO or columns == 200
    assert any(all(name in line for name in HEADINGS) for line in lines) is is_whole
    if is_whole:
        assert all(any(name in line for line in lines) for name in METHODS)
    else:
        assert max(map(len, lines)) <= columns
        words = " ".join(lines)
        assert words.count("2026-11-30") == words.count("2026-12-01") == 1
        assert "…" not in words


def test_options_reach_evaluate(monkeypatch, capsys):
    seen = {}

    def evaluate(ensemble, tasks, **options):
        seen.update(options, tasks=tasks, members_of=len(ensemble.members))
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_rlae.cli.evaluation.evaluate", evaluate)
    arguments = ["--task", "svamp", "--task", "gsm8k", "--source", "svamp=a.jsonl", "--source", "gsm8k=b.jsonl"]
    arguments += ["--few-shot", "2", "--scoring", "choices", "--option-form", "letter", "--validation", "train"]
    arguments += ["--sample", "--temperature", "0.5", "--seed", "3", "--no-members", "--batch-size", "4"]
    assert main(["evaluate", *MEMBERS, *arguments]) == 130
    assert seen.pop("generation_kwargs")["temperature"] == 0.5
    expected = {
        "tasks": ["svamp", "gsm8k"],
        "source": {"svamp": "a.jsonl", "gsm8k": "b.jsonl"},
        "num_few_shot": 2,
        "scoring": "choices",
        "option_form": "letter",
        "validation": "train",
        "seed": 3,
        "members": False,
        "batch_size": 4,
        "max_new_tokens": 256,
        "members_of": 2,
    }
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --task"),
        (["--task", "gsm8"], "did you mean 'gsm8k'"),
        (["--task", "gsm8k", "--limit", "0"], "--limit"),
        (["--task", "gsm8k", "--scoring", "both"], "invalid choice: 'both'"),
        (["--task", "gsm8k", "--task", "svamp", "--source", "x.jsonl"], "give TASK=SOURCE for each"),
        (["--task", "gsm8k", "--source", "a=b", "--source", "c=d"], "give TASK=SOURCE"),
        (["--task", "gsm8k", "--output", __file__], "is not a folder"),
        (["--task", "gsm8k", "--weights", "1"], "--weights"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("hf_rlae.cli.loading.load_members", lambda *_args, **_kwargs: pytest.fail("loaded"))
    try:
        code = main(["evaluate", *MEMBERS, *arguments])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
