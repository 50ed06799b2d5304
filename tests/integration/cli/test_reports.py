"""`--show-weights` and `--trace` of `hf-rlae generate`, and `hf-rlae demo`."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from hf_rlae.cli import demonstration
from hf_rlae.cli.main import main
from hf_rlae.zoo.loader import MEMBER_SETS, MEMBERS_FOLDER

SPECIALISTS = [str(MEMBERS_FOLDER / name) for name in MEMBER_SETS["different"]]
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def generate(*arguments: str) -> int:
    return main(["generate", *SPECIALISTS, *arguments, "--max-new-tokens", "24", "--device", "cpu"])


@pytest.fixture
def terminal(monkeypatch):
    """A stdout that is a terminal with colours."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_weights_are_shown_behind_the_text(capsys):
    assert generate("--prompt", "5*3=", "--weights", "0.1,0.1,0.8", "--show-weights", "--span-length", "4") == 0
    out = capsys.readouterr().out
    assert out.startswith("5*3= 5*3=15. 15\n")
    assert "■" in out
    assert re.search(r"0-\d\s+ 5\*3=15\. 15\s+0\.10\s+0\.10\s+0\.80", out)


def test_on_a_terminal_tokens_are_coloured_while_they_are_written(capsys, terminal):
    assert generate("--prompt", "5*3=", "--weights", "0,0,1", "--show-weights") == 0
    out = capsys.readouterr().out
    written = out.split("■")[0]
    assert CODES.sub("", written) == "5*3= 5*3=15. 15\n"
    assert written.startswith("5*3=\x1b[33m ")  # the prompt has no colour, the third member is yellow
    assert "\x1b[36m" not in written.removesuffix("\x1b[36m")  # the colour of the legend's first entry


def test_several_texts_are_coloured_too(capsys, terminal):
    prompts = ("--prompt", "5*3=", "--prompt", "6*2=")
    assert generate(*prompts, "--weights", "0,0,1", "--show-weights") == 0
    written = capsys.readouterr().out.split("■")[0]
    assert CODES.sub("", written) == "5*3= 5*3=15. 15\n\n6*2= 6*2=12. 12\n\n"
    assert written.count("\x1b[33m") >= 2


def test_a_trace_says_who_wrote_what(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert generate("--prompt", "5*3=", "--prompt", "7-2=", "--weights", "0,0,1", "--trace", str(path)) == 0
    capsys.readouterr()
    trace = json.loads(path.read_text(encoding="utf-8"))
    assert trace["members"] == SPECIALISTS
    assert [text["prompt"] for text in trace["texts"]] == ["5*3=", "7-2="]
    tokens = trace["texts"][0]["tokens"]
    assert b"".join(bytes.fromhex(token["bytes"]) for token in tokens) == b" 5*3=15. 15"
    for token in tokens:
        assert token["carrier"] == 2
        assert token["run"] == [False, False, True]
        assert token["weights"] == [0.0, 0.0, 1.0]
        assert token["logps"][2] < 0


@pytest.mark.parametrize(
    ("path", "why"), [("{folder}/missing/out.json", "there is no folder"), ("{folder}", "is not a file")]
)
def test_a_trace_that_cannot_be_written_is_refused_before_any_work(path, why, tmp_path, capsys):
    code = main(["generate", "no/such/member", "--prompt", "x", "--trace", path.format(folder=tmp_path)])
    assert code == 2
    assert why in capsys.readouterr().err


def test_the_demo_shows_that_weights_which_change_beat_every_fixed_weighting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demonstration, "NUM_VALIDATION", 8)
    monkeypatch.setattr(demonstration, "RESOLUTION", 2)
    picture = tmp_path / "weights.png"
    assert main(["demo", "--questions", "12", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "7+5*3= 5*3=15; 7+15=22. 22" in out
    shares = {
        label: int(share)
        for label, share in re.findall(
            r"^  (\S+ alone|uniform weights|best fixed weights|learned policy|switching).*? (\d+)%", out, re.M
        )
    }
    assert len(shares) == 7
    assert shares.pop("switching") >= shares.pop("learned policy") > 50 > 2 * max(shares.values())
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--chain", "7+x"], "is not a chain"),
        (["--chain", "1000+1"], "is not a chain"),
        (["--picture", "weights.gif"], "must end with"),
        (["--picture", os.path.join("missing", "weights.png")], "there is no folder"),
    ],
)
def test_the_demo_refuses_what_it_cannot_show(arguments, why, capsys):
    assert main(["demo", *arguments]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--questions", "0"], "whole number of at least 1 and at most 2000"),
        (["--questions", "2001"], "at most 2000"),
        (["--seed", "-1"], "whole number of at least 0"),
    ],
)
def test_numbers_of_the_demo_are_checked_by_the_parser(arguments, why, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *arguments])
    assert why in " ".join(capsys.readouterr().err.split())
