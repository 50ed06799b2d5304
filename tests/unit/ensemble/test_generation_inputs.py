"""Arguments of `generate` that only ensembles refuse, and caches that do not belong to the prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from hf_rlae import EnsembleForCausalLM
from hf_rlae.errors import InputError
from tests.support.ensembles import TEXTS, encode, endless
from tests.support.models import pair
from tests.support.refusals import different, refused, same
from tests.support.tokenizers import sentencepiece_bpe

PROMPT = encode("the dogs ran 12 miles")
IDS = PROMPT["input_ids"]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(params=[same, different], ids=["one_tokenizer", "two_tokenizers"])
def ensemble(request):
    return request.param()


REFUSED = {
    "no beam": ({"num_beams": 0}, "num_beams=0: give a whole number of at least 1"),
    "half a beam": ({"num_beams": 1.5}, "num_beams=1.5"),
    "beams as a flag": ({"num_beams": True}, "num_beams=True"),
    "no sequence": ({"num_return_sequences": 0}, "num_return_sequences=0"),
    "tokens as text": ({"max_new_tokens": "3"}, "max_new_tokens='3'"),
    "no token": ({"max_new_tokens": 0}, "max_new_tokens=0"),
    "beams of a config": ({"generation_config": GenerationConfig(num_beams=0)}, "num_beams=0"),
    "a config that is none": ({"generation_config": 3}, "generation_config must be a GenerationConfig, got int"),
    "a processor that is none": ({"logits_processor": 1}, "logits_processor must be a list of callables"),
    "criteria that are none": ({"stopping_criteria": ["x"]}, "stopping_criteria must be a list of callables"),
    "a streamer that is none": ({"streamer": 1}, "streamer must have the methods `put` and `end`"),
    "half a token": ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
    "fewer than no tokens": ({"min_new_tokens": -1}, "min_new_tokens=-1"),
    "labels": ({"labels": IDS}, "labels has no effect in `generate`"),
    "prompt_length": ({"prompt_length": 2}, "prompt_length has no effect in `generate`"),
    "positions": ({"position_ids": torch.arange(IDS.shape[1])[None]}, "position_ids has no effect"),
    "plain cache": ({"past_key_values": DynamicCache()}, "EnsembleCache, got DynamicCache"),
    "tuple": ({"past_key_values": ()}, "EnsembleCache, got tuple"),
    "a cache that members lack": ({"cache_implementation": "quantized"}, "cache_implementation='quantized' is not"),
    "cache by config": (
        {"generation_config": GenerationConfig(cache_implementation="offloaded")},
        "cache_implementation='offloaded'",
    ),
    "early exit": ({"assistant_early_exit": 1}, "assistant_early_exit=1"),
    "mask 2": ({"attention_mask": PROMPT["attention_mask"] * 2}, "attention_mask has the value 2"),
    "mask 0.3": ({"attention_mask": PROMPT["attention_mask"] * 0.3}, "attention_mask has the value 0.3"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_cannot_be_used(ensemble, arguments, words):
    with refused(InputError, words, ensemble=ensemble):
        ensemble.generate(IDS, **arguments)


def test_continuous_batching(ensemble):
    with refused(InputError, "call `generate` with a padded batch", ensemble=ensemble):
        ensemble.generate_batch([IDS[0].tolist()])
    with refused(InputError, "continuous batching", ensemble=ensemble), ensemble.continuous_batching_context_manager():
        pass


# A cache that has read a text


def test_a_used_cache_with_another_prompt(ensemble):
    """The ids must continue the text of the cache: with others the text was wrong, silently."""
    cache = ensemble.generate(IDS, **GREEDY, return_dict_in_generate=True).past_key_values
    other = encode("a cat sat on 3 mats and the dogs ran away")["input_ids"]
    assert other.shape[1] > cache.seen
    with refused(InputError, "column 0 of row 0", "another prompt", ensemble=ensemble):
        ensemble.generate(other, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("columns", [2, "prompt"])
def test_ids_that_the_cache_has_read(ensemble, columns):
    cache = ensemble.generate(IDS, **GREEDY, return_dict_in_generate=True).past_key_values
    ids = IDS if columns == "prompt" else IDS[:, :columns]
    with refused(InputError, f"past_key_values has read {cache.seen}", "crop", ensemble=ensemble):
        ensemble.generate(ids, past_key_values=cache, **GREEDY)


def test_rows_that_the_cache_does_not_have(ensemble):
    out = ensemble.generate(IDS, **GREEDY, return_dict_in_generate=True)
    for ids, options in ((out.sequences.repeat(2, 1), {}), (out.sequences, {"num_beams": 2})):
        with refused(InputError, "has 1 rows, the call has 2", ensemble=ensemble):
            ensemble.generate(ids, past_key_values=out.past_key_values, **GREEDY, **options)


@pytest.mark.parametrize("second", [pair, sentencepiece_bpe], ids=["one_tokenizer", "two_tokenizers"])
def test_a_used_cache_with_its_own_text(second):
    """What follows the text of the cache is accepted; ids under padding are not compared."""
    members = [pair("llama"), pair("gpt2", 1) if second is pair else pair("gpt2", 1, second())]
    ensemble = endless(members)
    inputs = encode(TEXTS[0], TEXTS[1])
    out = ensemble.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert bool((inputs["attention_mask"] == 0).any())
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1)
    ids = out.sequences.masked_fill(mask == 0, 7)
    again = ensemble.generate(ids, attention_mask=mask, past_key_values=out.past_key_values, **GREEDY)
    assert torch.equal(again[:, : ids.shape[1]], ids)
    assert again.shape[1] == ids.shape[1] + 4


# Hosts whose generation config names a cache


@pytest.mark.parametrize("how", ["config", "argument"])
def test_the_cache_of_a_host_is_dropped(ensemble, how):
    host, generate = ensemble.members[0].model, ensemble.as_custom_generate()
    expected = host.generate(**PROMPT, custom_generate=generate, **GREEDY)
    options = {"cache_implementation": "static"} if how == "argument" else {}
    host.generation_config.cache_implementation = "static"
    try:
        got = host.generate(**PROMPT, custom_generate=generate, **GREEDY, **options)
    finally:
        host.generation_config.cache_implementation = None
    assert torch.equal(got, expected)


def test_the_cache_of_the_only_member_is_dropped():
    """An ensemble of one member takes over its generation config, but not the kind of its cache."""
    model, tokenizer = pair("llama")
    model.generation_config.cache_implementation = "static"
    try:
        ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)])
        assert ensemble.generate(**PROMPT, **GREEDY).shape[1] == IDS.shape[1] + 4
        assert model.generation_config.cache_implementation == "static"
    finally:
        model.generation_config.cache_implementation = None
