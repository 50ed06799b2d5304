"""A policy is trained and pushed; another process pulls it in three ways, and all write the same text."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel, push_custom_generate
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from tests.support.card_rules import faults_of_card
from tests.support.rlae import data, members, vowels

PROMPT = "Once upon a"
PULL = f"""
import json

import transformers
from hf_rlae import EnsembleForCausalLM, save_custom_generate
from transformers import AutoModelForCausalLM, AutoTokenizer

options = {{"max_new_tokens": 16, "do_sample": False}}
tokenizer = AutoTokenizer.from_pretrained("me/member-0")
inputs = tokenizer({PROMPT!r}, return_tensors="pt")


def text(model, **more):
    reader = model.tokenizer if isinstance(model, EnsembleForCausalLM) else tokenizer
    return reader.decode(model.generate(**inputs, **options, **more)[0], skip_special_tokens=True)


plain = AutoModelForCausalLM.from_pretrained("me/member-0")
by_policy = EnsembleForCausalLM.from_members(["me/member-0", "me/member-1"], policy="me/policy", span_length=2)
by_auto = AutoModelForCausalLM.from_pretrained("me/ensemble")
code = {{"custom_generate": "me/ensemble-generate", "trust_remote_code": True}}
print(json.dumps([type(by_auto).__name__, text(by_policy), text(by_auto), text(plain, **code), text(plain)]))
"""


@pytest.mark.slow
def test_one_text_in_three_ways(hub, tmp_path):
    names = ["me/member-0", "me/member-1"]
    for number, (model, tokenizer) in enumerate(members("different")):
        model.save_pretrained(tmp_path / str(number))
        tokenizer.save_pretrained(tmp_path / str(number))
        hub.add_repo(names[number], tmp_path / str(number))
    ensemble = EnsembleForCausalLM.from_members(names, span_length=2)
    policy = PolicyModel(PolicyConfig.for_members(ensemble.members, span_length=2, hidden_size=16))
    with torch.no_grad():
        policy.heads.scores[0].bias[1] = 3.0  # the text is not that of the first member alone
    ensemble.set_policy(policy)
    args = RLAEConfig(
        str(tmp_path / "policy"), hub_model_id="me/policy", max_steps=4, per_device_train_batch_size=8,
        num_generations=4, max_completion_length=6, learning_rate=0.01, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = RLAETrainer(ensemble, vowels, args, data(8))
    trainer.train()
    trainer.push_to_hub()
    ensemble.push_to_hub("me/ensemble")
    push_custom_generate("me/ensemble-generate", "me/ensemble")
    inputs = ensemble.tokenizer([PROMPT], return_tensors="pt")
    ids = ensemble.generate(**inputs, max_new_tokens=16, do_sample=False)
    expected = ensemble.tokenizer.decode(ids[0], skip_special_tokens=True)
    run = subprocess.run(
        [sys.executable, "-c", PULL], env=hub.environment(), capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    kind, *texts, alone = json.loads(run.stdout.splitlines()[-1])
    assert kind == "EnsembleForCausalLM"
    assert texts == [expected] * 3
    assert alone != expected
    names = ("policy", "ensemble", "ensemble-generate")
    cards = [hub.files(f"me/{name}")["README.md"].decode() for name in names]
    codes = [code for card in cards for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(codes)],
        env=hub.environment(), capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    printed = [line for line in run.stdout.splitlines() if line.startswith("[")]
    assert len(printed) == 3
    assert len(set(printed)) == 1, printed
    for name in names:
        files = hub.files(f"me/{name}")
        assert faults_of_card(files["README.md"].decode()) == []
        assert not [path for path in files if path.endswith((".bin", ".pt", ".pkl"))]
        assert all(str(tmp_path).encode() not in content for content in files.values())
