"""The paper's policy in small: a DeBERTa-V2 encoder with a Unigram tokenizer, trained, saved, loaded and resumed."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, PolicyModel
from tests.support.policies import deberta
from tests.support.rlae import assert_same, members, parameters_of, trainer_of, unsettle
from tests.support.stopping import StopAt

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "encoder_batch_size": 5}


def made(folder, objective, **options):
    actor = "per_member" if objective == "mappo" else "joint"
    torch.manual_seed(0)
    given = members("different")
    policy = PolicyModel.from_encoder(deberta(), given, actor=actor, hidden_size=16, span_length=2)
    unsettle(policy)
    ensemble = EnsembleForCausalLM.from_members(given, policy, span_length=2)
    return trainer_of(folder, objective, ensemble=ensemble, **options)


@pytest.mark.parametrize("objective", ["ppo", "mappo"])
def test_trained_saved_loaded_and_resumed(tmp_path, objective):
    whole = made(tmp_path / "whole", objective, **SAVES)
    before = parameters_of(whole.policy)
    whole.train()
    after = parameters_of(whole.policy)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name for name in before if name.startswith("encoder.encoder.layer.")} <= moved
    assert all(entry["policy/ratio_max"] == pytest.approx(1.0, abs=1e-3) for entry in whole.state.log_history[:1])

    made(tmp_path / "part", objective, callbacks=[StopAt(3)], **SAVES).train()  # in the middle of a rollout
    resumed = made(tmp_path / "part", objective, **SAVES)
    resumed.train(resume_from_checkpoint=True)
    assert_same(parameters_of(resumed.policy), after)

    whole.save_model(str(tmp_path / "saved"))
    loaded = PolicyModel.from_pretrained(tmp_path / "saved")
    assert type(loaded.tokenizer) is type(whole.policy.tokenizer)
    assert_same(parameters_of(loaded), after)
    again = EnsembleForCausalLM.from_members(members("different"), loaded, span_length=2)
    inputs = again.tokenizer(["Once upon a", "She said"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    one, other = again.generate(**inputs, **options), whole.ensemble.generate(**inputs, **options)
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(one.span_weights, other.span_weights)
