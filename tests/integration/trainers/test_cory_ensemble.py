"""Agents of a CORY trainer as members of an ensemble."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_rlae import EnsembleForCausalLM
from tests.support.cory import base, trainer_of
from tests.support.token_ppo import unsettle


@pytest.mark.parametrize("source", ["folder", "trainer"])
def test_two_agents_as_an_ensemble(tmp_path, source):
    """From the folder that `save_model` writes, beside its base, or from the trainer's model as it is."""
    model, tokenizer = base()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = trainer_of(tmp_path / "team", given=(model, tokenizer), max_steps=1)
    trainer.train()
    unsettle(trainer)
    trainer.save_model()
    trainer.model.eval()
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    expected = []
    for agent in trainer.agents.names:
        with trainer.agents.acting(agent), torch.no_grad():
            expected.append(trainer.model(ids).logits.log_softmax(-1))
    assert (expected[0] - expected[1]).abs().max() > 0.1
    given = str(tmp_path / "team") if source == "folder" else (trainer.model, tokenizer)
    team = EnsembleForCausalLM.from_members([given] * 2, adapter_names=["default", "agent-2"])
    for member, own in zip(team.members, expected, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(member.model(ids).logits.log_softmax(-1), own)
    mixed = torch.stack(expected).logsumexp(0) - torch.tensor(2.0).log()
    with torch.no_grad():
        torch.testing.assert_close(team(ids).logits.log_softmax(-1), mixed, atol=1e-4, rtol=1e-4)
    assert team.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= ids.shape[1] + 4
