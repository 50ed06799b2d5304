"""`hf-rlae` answers bad input, accidents and defects with one line and an exit code, never with a traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from hf_rlae.cli import demo
from hf_rlae.cli.main import main
from hf_rlae.errors import ConfigError, InternalError
from tests.support.models import pair
from tests.support.tokenizers import unigram


class PanicException(BaseException):
    """Panics of extensions in Rust, such as tokenizers, do not derive from Exception."""


ACCIDENTS = [
    # raised, exit code, the line on stderr
    (ConfigError("span_length=0\n  give 1"), 2, "hf-rlae: error: span_length=0 give 1"),
    (ConfigError("w" * 900), 2, f"hf-rlae: error: {'w' * 900}"),  # our own messages are never cut
    (InternalError("draws is missing"), 1, "hf-rlae: error: InternalError: draws is missing (--debug "),
    (RuntimeError("size mismatch:\n\tq_proj"), 1, "hf-rlae: error: RuntimeError: size mismatch: q_proj (--debug "),
    (RuntimeError("x" * 900), 1, "x ... (--debug shows the traceback)"),
    (MemoryError(), 1, "hf-rlae: error: MemoryError (--debug shows the traceback)"),
    (KeyError("added_tokens"), 1, "hf-rlae: error: KeyError: 'added_tokens' (--debug "),
    (PanicException("called unwrap on None"), 1, "hf-rlae: error: PanicException: called unwrap on None (--debug "),
    (
        OSError(28, "No space left on device"),
        1,
        "hf-rlae: error: OSError: [Errno 28] No space left on device (--debug ",
    ),
    (KeyboardInterrupt(), 130, "hf-rlae: interrupted"),
]


def raising(error: BaseException) -> Callable[..., int]:
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(("error", "code", "line"), ACCIDENTS, ids=lambda value: type(value).__name__)
def test_an_accident_is_one_line(capfd, monkeypatch, tmp_path, error, code, line):
    monkeypatch.setattr(demo, "run", raising(error))
    with open(tmp_path / "stdout", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)  # after an OSError, `main` sends its descriptor to nowhere
        assert main(["demo"]) == code
    written = capfd.readouterr().err
    assert line in written
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("trian", "'version') (did you mean train?); usage: hf-rlae COMMAND ... [options] (see `hf-rlae --help`)"),
        ("", "the following arguments are required: COMMAND; usage: hf-rlae COMMAND ... [options] (see `hf-rlae "),
        (
            "chat",
            "the following arguments are required: MEMBER; usage: hf-rlae chat MEMBER [MEMBER ...] [options] (see ",
        ),
        (
            "chat a b --weihgts 1,0",
            "there is no option --weihgts (did you mean --weights?); usage: hf-rlae chat MEMBER ",
        ),
        (
            "generate a --promt x",
            "there is no option --promt (did you mean --prompt?); usage: hf-rlae generate MEMBER ",
        ),
        ("generate --promt", "there is no option --promt (did you mean --prompt?); "),  # not: MEMBER is required
        (
            "evaluate a --tsak=gsm8k",
            "there is no option --tsak (did you mean --task?); usage: hf-rlae evaluate --task ",
        ),
        ("evaluate a --metho x", "the following arguments are required: --task; "),  # argparse takes it for --method
        (
            "pull a/b --zzzzzz",
            "there is no option --zzzzzz; usage: hf-rlae pull REPO_ID [FOLDER] [options] (see `hf-rl",
        ),
        ("pull a/b c d", "unrecognized arguments: d; usage: hf-rlae pull REPO_ID "),
        ("train ppo", "invalid choice: 'ppo' (choose from 'rlae', 'cory'); usage: hf-rlae train [{rlae,cory}] "),
        ("train croy", "(choose from 'rlae', 'cory') (did you mean cory?); "),
    ],
)
def test_what_the_parser_refuses_is_one_line(capsys, given, line):
    with pytest.raises(SystemExit, match="2"):
        main(given.split())
    written = capsys.readouterr().err
    assert written.startswith("hf-rlae: error: ")
    assert line in written
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "packages", "line"),
    [
        ("serve a b", ["openai"], "hf-rlae serve needs openai: install hf_rlae with its extra `serve`"),
        (
            "serve a b",
            ["fastapi", "uvicorn"],
            "hf-rlae serve needs fastapi, uvicorn: install hf_rlae with its extra `serve`",
        ),
        ("train rlae", ["trl"], "hf-rlae train needs trl: install hf_rlae with its extra `train`"),
        (
            "train cory --settings",
            ["trl", "peft"],
            "hf-rlae train needs trl, peft: install hf_rlae with its extra `train`",
        ),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(capfd, monkeypatch, given, packages, line):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in packages else found(name))
    assert main(given.split()) == 2
    written = capfd.readouterr().err
    assert written.startswith(f"hf-rlae: error: {line} (in a clone: pip install -e ")
    assert written.count("\n") == 1


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_traceback_is_shown_on_request(capfd, monkeypatch, how):
    monkeypatch.setattr(demo, "run", raising(RuntimeError("deep inside")))
    if how == "environment":
        monkeypatch.setenv("HF_RLAE_DEBUG", "1")
    assert main(["demo", "--debug"] if how == "option" else ["demo"]) == 1
    written = capfd.readouterr().err
    assert written.startswith("Traceback (most recent call last)")
    assert written.splitlines()[-1].startswith("hf-rlae: error: RuntimeError: deep inside")


def test_a_reader_that_is_gone_ends_the_command_silently(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run", raising(BrokenPipeError()))
    with open(tmp_path / "stdout", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)  # its descriptor is sent to nowhere
        assert main(["demo"]) == 141
    assert capfd.readouterr().err == ""


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _reshaped(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj" in name)
    save_file({**tensors, name: tensors[name][:, :5].contiguous()}, path, metadata={"format": "pt"})


class _Opened:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Opened(folder / "executed")}, folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "a pickle that runs code": _pickled,
    "a reshaped tensor": _reshaped,
    "half of the weights": _cut,
    "heads that do not divide the width": lambda folder: _config(folder, num_attention_heads=3),
    "a negative width": lambda folder: _config(folder, hidden_size=-8),
    "a width that is a word": lambda folder: _config(folder, hidden_size="wide"),
    "a width that the weights do not have": lambda folder: _config(folder, hidden_size=64),
    "an unknown architecture": lambda folder: _config(folder, model_type="zorg"),
    "half of a config": lambda folder: (folder / "config.json").write_text("{"),
    "a config that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "a tokenizer without a model": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "a tokenizer that is not text": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
    "tokenizer settings that are a list": lambda folder: (folder / "tokenizer_config.json").write_text("[1]"),
}


@pytest.fixture
def quiet_transformers():
    """The command raises the level of transformers' logs."""
    level = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(level)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_member_is_one_line_that_names_it(tmp_path, capfd, quiet_transformers, damage):
    for saved in pair("llama", 0, unigram(), max_position_embeddings=64):
        saved.save_pretrained(tmp_path)
    DAMAGES[damage](tmp_path)
    capfd.readouterr()  # saving shows a progress bar
    assert main(["generate", str(tmp_path), "--prompt", "Once", "--max-new-tokens", "2", "--device", "cpu"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("hf-rlae: error: ")
    assert str(tmp_path) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "executed").exists()


def test_a_prompt_that_is_not_text_is_refused_before_anything_is_imported():
    script = (
        "import sys; from hf_rlae.cli.main import main; code = main(); print('torch' in sys.modules); sys.exit(code)"
    )
    prompt = b"caf\xe9"  # in Latin-1
    command = [sys.executable, "-c", script, "generate", "a/b", "--prompt", prompt]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout == b"False\n"
    assert done.stderr.startswith(b"hf-rlae: error: --prompt: '\\udce9' at character 3 ")
    assert done.stderr.count(b"\n") == 1


def test_waiting_threads_sleep():
    """Threads that spin between two small operations take the cores from other processes."""
    script = (
        "import os, sys; from hf_rlae.cli.main import main; main(['generate', './none', '--prompt', 'x']); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "passive False\n"
