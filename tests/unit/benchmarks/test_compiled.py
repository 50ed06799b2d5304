"""The benchmark of compiled members, on one small model and without a compiler."""

from functools import partial

import pytest
import torch

from hf_rlae import EnsembleForCausalLM
from tests.benchmarks import compiled


@pytest.mark.slow
def test_a_row_says_what_was_compiled(monkeypatch, capsys):
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "TOKENIZERS", {"one tokenizer": compiled.TOKENIZERS["one tokenizer"]})
    compile_all = EnsembleForCausalLM.compile
    monkeypatch.setattr(EnsembleForCausalLM, "compile", lambda self, mode: partial(compile_all, self)(backend="eager"))
    compiled.main(["--hidden", "64", "--layers", "1", "--tokens", "4", "--turns", "1", "--batch", "2"])
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert row[:2] == ["one tokenizer", "2"]
    assert row[-3:] == ["2, 0", "0, 0", "True"]
    assert all(float(cell) > 0 for cell in row[2:5])
