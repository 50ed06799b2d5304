"""Teacher-forced log-probabilities of the members."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM
from hf_rlae.ensemble import member_scores
from hf_rlae.ensemble.member_scores import score_members
from tests.support.ensembles import TEXTS, Schedule, encode, policy_of_text
from tests.support.rlae import members

POLICIES = {
    "uniform": None,
    "of the text": policy_of_text,
    "one-hot now and then": Schedule((0.7, 0.3), (0.0, 1.0), (1.0, 0.0)),
}


def written(ensemble, inputs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ensemble.generate(
            **inputs, max_new_tokens=6, do_sample=True, top_k=0, return_dict_in_generate=True, eos_token_id=-1
        )


@pytest.mark.parametrize(("kind", "unit"), [("shared", "token"), ("different", "token"), ("different", "byte")])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_equals_what_generating_recorded(kind, unit, policy):
    """With the weights of a call, teacher forcing of its text gives the recorded log-probabilities, including NaN."""
    ensemble = EnsembleForCausalLM.from_members(members(kind), policy, span_length=2, weight_unit=unit)
    inputs = encode(*TEXTS)
    out = written(ensemble, inputs)
    columns = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(out.sequences[:, columns:])], dim=1)
    before = ensemble.policy
    found = score_members(ensemble, out.sequences, mask, columns, span_weights=out.span_weights)
    assert ensemble.policy is before
    held = out.span_weights.repeat_interleave(2, dim=1)[:, : found.shape[1]]
    assert (found.isnan() == (held == 0)).all()
    torch.testing.assert_close(found, out.member_logps, atol=2e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("start", [None, 5, 12])
def test_a_pass_over_a_prompt_is_recorded(kind, start):
    """The same with a declared prompt, inside which members with different tokenizers have no distribution."""
    ensemble = EnsembleForCausalLM.from_members(members(kind))
    inputs = encode(*TEXTS[:2])
    assert inputs["input_ids"].shape[1] == 12
    cache = ensemble.new_cache(record=True)
    with torch.no_grad():
        ensemble(**inputs, past_key_values=cache, prompt_length=start)
    found = cache.trace.pending.of(inputs["input_ids"])
    assert found.shape == (2, 12, 2)
    silent = 0 if kind == "shared" or start is None else start - 1
    assert found[:, :silent].isnan().all()
    assert not found[:, max(silent, 11) :].isnan().any()


def test_equals_each_member_by_itself():
    pairs = members("shared")
    ensemble = EnsembleForCausalLM.from_members(pairs, policy_of_text)
    ids = encode("Once upon a time, there was")["input_ids"]
    found = score_members(ensemble, ids, torch.ones_like(ids), 3)
    assert found.shape == (1, ids.shape[1] - 3, 2)
    for index, (model, _) in enumerate(pairs):
        with torch.no_grad():
            logps = model(ids).logits[:, 2:-1].log_softmax(-1)
        expected = logps.gather(-1, ids[:, 3:, None])[..., 0]
        torch.testing.assert_close(found[..., index], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "different"])
def test_parts_of_a_batch_are_put_together(kind, monkeypatch):
    ensemble = EnsembleForCausalLM.from_members(members(kind), span_length=2)
    inputs = encode(*TEXTS)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    weights = torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(0)).softmax(-1)
    whole = score_members(ensemble, ids, mask, ids.shape[1] - 2, span_weights=weights)
    monkeypatch.setattr(member_scores, "_MAX_CELLS", 1)
    parts = score_members(ensemble, ids, mask, ids.shape[1] - 2, span_weights=weights)
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=1e-4)


def test_the_policy_comes_back_after_an_error(monkeypatch):
    ensemble = EnsembleForCausalLM.from_members(members("shared"), policy_of_text)
    ids = encode("Once upon")["input_ids"]
    monkeypatch.setattr(type(ensemble), "new_cache", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_members(ensemble, ids, torch.ones_like(ids), 1)
    assert ensemble.policy is policy_of_text
