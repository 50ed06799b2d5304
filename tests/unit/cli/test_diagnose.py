"""`hf-rlae diagnose`."""

from __future__ import annotations

import json

import pytest

from hf_rlae.cli.main import USAGE_ERROR, main

MEMBERS = ["demo:addition-characters", "demo:multiplication-pieces"]


def test_a_task_and_the_files(tmp_path, capsys):
    options = [
        "--task",
        "arithmetic_chain",
        "--limit",
        "24",
        "--max-new-tokens",
        "4",
        "--output",
        str(tmp_path / "new"),
    ]
    assert main(["diagnose", *MEMBERS, *options]) == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "new" / "diagnosis.json").read_text())
    assert content["advice"].split(":")[0][:20] in shown
    assert "oracle per span" in shown
    assert "oracle per question" in shown


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl"])
def test_a_file_of_texts(tmp_path, capsys, name):
    texts = [f"What is {at} plus 3? {at}+3={at + 3}. {at + 3}" for at in range(1, 7)] * 3
    lines = texts if name.endswith(".txt") else [json.dumps({"text": text}) for text in texts]
    (tmp_path / name).write_text("\n\n".join(lines))
    assert main(["diagnose", *MEMBERS, "--text-file", str(tmp_path / name)]) == 0
    assert "bits per byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text-file", "no-such-file.txt"], "there is no file"),
        (["--task", "arithmetic_chan"], "arithmetic_chain"),
        (["--task", "gsm8k", "--limit", "3"], "12"),
        ([], "--text-file"),
    ],
)
def test_bad_options_are_refused(capsys, options, words):
    try:
        code = main(["diagnose", *MEMBERS, *options])
    except SystemExit as error:
        code = error.code
    assert code == USAGE_ERROR
    assert words in capsys.readouterr().err
