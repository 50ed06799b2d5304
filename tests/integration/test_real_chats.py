"""Two real instruct models answer a question together.

`HF_RLAE_REAL_LLMS` names a folder with two or more folders of such models, which are too large for the gate; without it
the test is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_rlae.cli.main import main

FOLDERS = sorted(str(path.parent) for path in Path(os.environ.get("HF_RLAE_REAL_LLMS", "-")).glob("*/config.json"))
QUESTION = "What is 12 + 30?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(FOLDERS) < 2, reason="HF_RLAE_REAL_LLMS names no folder with two instruct models"),
]


@pytest.mark.parametrize("order", [1, -1])
def test_a_sum_is_answered_and_the_answer_ends(tmp_path, capsys, order):
    members = FOLDERS[:2][::order]
    trace = tmp_path / "trace.json"
    assert main(["generate", *members, "--chat", "--prompt", QUESTION, "--trace", str(trace)]) == 0
    reply = capsys.readouterr().out.removeprefix(f"{QUESTION}\n\n")
    assert "42" in reply
    for member in members:
        specials = AutoTokenizer.from_pretrained(member).all_special_tokens
        assert not [token for token in specials if token in reply]
    (text,) = json.loads(trace.read_text(encoding="utf-8"))["texts"]
    *tokens, last = text["tokens"]
    assert last["bytes"] == ""  # STOP
    assert all(token["bytes"] for token in tokens)
    assert all(all(token["run"]) for token in text["tokens"])  # both members were asked for every token
