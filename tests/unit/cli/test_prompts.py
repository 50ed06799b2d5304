"""Where `hf-rlae generate` reads prompts from, and how it decodes them."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from hf_rlae import EnsembleForCausalLM, load_demo_member
from hf_rlae.cli.main import main

MEMBER = "demo:multiplication-bytes"


@pytest.fixture
def stdin(monkeypatch):
    def give(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))

    return give


def generate(*given: str) -> int:
    return main(["generate", MEMBER, *given, "--device", "cpu", "--max-new-tokens", "12"])


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_of_a_file_and_of_standard_input(capsys, tmp_path, stdin, end):
    """The last line break belongs to the file, not to the text; other line breaks and spaces stay."""
    (tmp_path / "prompt.txt").write_bytes(b" hi\n5*3=" + end)
    texts = []
    for given in (["--prompt", " hi\n5*3="], ["--prompt", "-"], ["--prompt-file", str(tmp_path / "prompt.txt")]):
        stdin((tmp_path / "prompt.txt").read_bytes())
        assert generate(*given) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith(" hi\n5*3=")
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("given", "raw", "message"),
    [
        ([], b"", "give --prompt TEXT, --prompt - or --prompt-file FILE"),
        (["--prompt", "-"], b"\n", "--prompt - has no text"),
        (["--prompt", "-"], b"caf\xe9", "--prompt - cannot be read"),
        (["--prompt-file", "not/there"], b"", "--prompt-file not/there cannot be read"),
        (["--prompt", "x", "--top-k", "3"], b"", "--top-k has no effect on greedy decoding"),
        (["--prompt", "x", "--negative-prompt", "\udce9"], b"", "--negative-prompt: '\\udce9'"),
    ],
)
def test_what_cannot_be_read_is_named(capsys, stdin, given, raw, message):
    stdin(raw)
    assert generate(*given) == 2
    assert message in capsys.readouterr().err


def expected(**options) -> str:
    ensemble = EnsembleForCausalLM.from_members([load_demo_member("multiplication-bytes")])
    inputs = ensemble.tokenizer(["What is 5"], return_tensors="pt")
    ids = ensemble.generate(**inputs, max_new_tokens=12, **options)
    return ensemble.tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"


def test_beams_are_those_of_generate(capsys):
    assert generate("--prompt", "What is 5", "--num-beams", "4", "--table", "--show-weights") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(expected(num_beams=4, do_sample=False))
    assert "multiplication-" in captured.out  # the reports
    assert captured.err == ""


def test_the_most_likely_token_alone_is_greedy_decoding(capsys):
    assert generate("--prompt", "What is 5", "--sample", "--top-k", "1", "--seed", "3") == 0
    assert capsys.readouterr().out == expected(do_sample=False)
