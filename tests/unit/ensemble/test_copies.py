"""Copies and pickles: of ensembles, caches and processors. Copies share the members, pickles contain them."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, PolicyConfig, PolicyModel
from tests.support.ensembles import TEXTS, encode, policy_of_text
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

INPUTS = encode(*TEXTS)
GREEDY = {"do_sample": False, "max_new_tokens": 8}
TOKENIZERS = {"one_tokenizer": byte_level_bpe, "two_tokenizers": sentencepiece_bpe}


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def members(request):
    return [pair("llama"), pair("gpt2", 1, request.param())]


@pytest.fixture
def ensemble(members):
    return EnsembleForCausalLM.from_members(members, policy_of_text, span_length=3)


def test_a_copied_ensemble_shares_its_members(members):
    """The policy is copied, as for a reference model in TRL; the members, which are frozen, are not."""
    ensemble = EnsembleForCausalLM.from_members(members, span_length=3)
    ensemble.set_policy(PolicyModel(PolicyConfig.for_members(ensemble.members)).eval())
    twin = copy.deepcopy(ensemble)
    assert all(one is other for one, other in zip(twin.members, ensemble.members, strict=True))
    assert twin.policy is not ensemble.policy
    assert torch.equal(twin.generate(**INPUTS, **GREEDY), ensemble.generate(**INPUTS, **GREEDY))
    with torch.no_grad():
        for parameter in twin.policy.parameters():
            parameter.add_(1.0)
    own = dict(ensemble.policy.named_parameters())
    assert all(not torch.equal(own[name], other) for name, other in twin.policy.named_parameters())


def test_a_pickled_ensemble(ensemble):
    twin = pickled(ensemble)
    assert twin.members[0].model is not ensemble.members[0].model
    assert torch.equal(twin.generate(**INPUTS, **GREEDY), ensemble.generate(**INPUTS, **GREEDY))
    assert twin.tokenizer("the dogs")["input_ids"] == ensemble.tokenizer("the dogs")["input_ids"]


def test_a_copied_cache_continues_on_its_own(ensemble):
    """The idiom of transformers for a prompt that several calls share: a copy of the cache for each call."""
    cache = ensemble(**{name: value[:, :-1] for name, value in INPUTS.items()}, prompt_length=0).past_key_values
    twins = [copy.deepcopy(cache) for _ in range(2)]
    assert twins[0].call.engine is ensemble.engine
    ids = INPUTS["input_ids"][:, -1:]
    first, second = (
        ensemble(ids, attention_mask=INPUTS["attention_mask"], past_key_values=twin).logits for twin in twins
    )
    assert torch.equal(first, second)
    assert [cache.seen, *(twin.seen for twin in twins)] == [ids.shape[1] + cache.seen - 1] + [cache.seen + 1] * 2


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy], ids=["deep", "shallow"])
def test_a_copied_processor(ensemble, copied):
    """`lm-eval` copies the arguments of `generate`: the copy works, beside the first one and without it."""
    host = ensemble.members[0].model
    processor = EnsembleLogitsProcessor(ensemble)
    expected = host.generate(**INPUTS, **GREEDY, logits_processor=[processor])
    arguments = copied({**GREEDY, "logits_processor": copied([copied(processor)])})
    twin = arguments["logits_processor"][0]
    assert twin is not processor
    assert twin.ensemble is ensemble
    for _ in range(2):
        assert torch.equal(host.generate(**INPUTS, **arguments), expected)
        assert torch.equal(host.generate(**INPUTS, **GREEDY, logits_processor=[processor]), expected)
    del processor
    gc.collect()
    assert torch.equal(host.generate(**INPUTS, **arguments), expected)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_copies_of_a_processor_share_its_hooks(ensemble):
    """Two sets of hooks would hide columns from one another that policies with means of states need."""
    host = ensemble.members[0].model
    ensemble.set_policy(PolicyModel(PolicyConfig.for_members(ensemble.members, pooled_tokens=4)).eval())
    before = hooks(host)
    processor = EnsembleLogitsProcessor(ensemble)
    number = hooks(host)
    twin = copy.deepcopy(processor)
    assert hooks(host) == number > before
    expected = host.generate(**INPUTS, **GREEDY, logits_processor=[processor])
    assert torch.equal(host.generate(**INPUTS, **GREEDY, logits_processor=[twin]), expected)
    del processor, twin
    gc.collect()
    assert hooks(host) == before


def test_a_copied_processor_has_its_own_mask(ensemble):
    processor = EnsembleLogitsProcessor(ensemble)
    twin = copy.deepcopy(processor)
    twin.attention_mask = torch.zeros(1, 1)
    assert processor.attention_mask is None


def test_a_pickled_processor(ensemble):
    processor = EnsembleLogitsProcessor(ensemble, host_rereads=True)
    twin = pickled(processor)
    assert twin.host_rereads
    expected = ensemble.members[0].model.generate(**INPUTS, **GREEDY, logits_processor=[processor])
    assert torch.equal(twin.host.model.generate(**INPUTS, **GREEDY, logits_processor=[twin]), expected)
