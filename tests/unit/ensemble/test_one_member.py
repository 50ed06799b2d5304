"""An ensemble of one member is that member: the same tokens and the same scores, bit-exactly."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList, TextStreamer
from transformers.generation import BaseStreamer

from hf_rlae import EnsembleForCausalLM
from tests.support.ensembles import TEXTS, encode
from tests.support.models import ARCHITECTURES, RECURRENT, pair, with_adapters
from tests.support.tiers import slow

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "top_p": {"do_sample": True, "top_p": 0.8, "temperature": 0.7, "num_return_sequences": 2},
    "beams": {"num_beams": 4, "do_sample": False},
    "beams_returned": {"num_beams": 4, "num_return_sequences": 3, "do_sample": False, "length_penalty": 0.5},
}
EVERYTHING = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}


@cache
def alone(architecture: str):
    """A model, and an ensemble with this model as its only member."""
    model, tokenizer = pair(architecture)
    return model, EnsembleForCausalLM.from_members([(model, tokenizer)])


def assert_same(model, ensemble, inputs, exact=True, reference=None, **settings):
    """Calls both with equal seeds and compares ids and scores; `reference` changes the options of the model."""
    if "generation_config" not in settings:
        settings = {"max_new_tokens": 8, **EVERYTHING, **settings}
    torch.manual_seed(1)
    expected = model.generate(**inputs, **{**settings, **(reference or {})})
    torch.manual_seed(1)
    got = ensemble.generate(**inputs, **settings)
    tolerance = {"atol": 0, "rtol": 0} if exact else {"atol": 1e-4, "rtol": 1e-5}
    assert torch.equal(got.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert len(got[name]) == len(expected[name]) > 0
        for step, (ours, own) in enumerate(zip(got[name], expected[name], strict=True)):
            torch.testing.assert_close(ours, own, **tolerance, msg=f"{name} of step {step}")
    if "sequences_scores" in expected:
        torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, **tolerance)
        assert torch.equal(got.beam_indices, expected.beam_indices)
    return got


@pytest.mark.parametrize("use_cache", [True, *slow(False)], ids=["cache", "no_cache"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture, mode, use_cache):
    """Law: one member = that member, for each decoding method; in a left-padded batch if the model supports it."""
    model, ensemble = alone(architecture)
    settings = {"use_cache": use_cache, **MODES[mode]}
    if architecture not in RECURRENT:
        assert_same(model, ensemble, encode(*TEXTS), **settings)
    elif mode in ("greedy", "sampling"):
        assert_same(model, ensemble, encode(TEXTS[0]), **settings)
    else:
        # transformers' RWKV mixes the rows of a batch in steps with a cache, but not without one
        assert_same(model, ensemble, encode(TEXTS[0]), exact=False, reference={"use_cache": False}, **settings)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])
@pytest.mark.parametrize("architecture", RECURRENT)
def test_recurrent_rows_in_a_padded_batch(architecture, use_cache):
    """Law: one member = that member: a row of a batch of a recurrent model = the row alone, for any padding."""
    model, ensemble = alone(architecture)
    got = ensemble.generate(**encode(*TEXTS), max_new_tokens=8, do_sample=False, use_cache=use_cache)
    for row, text in enumerate(TEXTS):
        expected = model.generate(**encode(text), max_new_tokens=8, do_sample=False)[0, -8:]
        assert got[row, -8:].tolist() == expected.tolist(), f"row {row}"


class Parrot(BaseStreamer):
    """A streamer that keeps all ids."""

    def __init__(self):
        self.ids = []
        self.ended = False

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended = True


SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2, "max_new_tokens": 20},
    "min_p": {"do_sample": True, "min_p": 0.05},
    "eos_list": {"eos_token_id": list(range(3, 200)), "max_new_tokens": 20},
    "max_length": {"generation_config": GenerationConfig(max_length=30, pad_token_id=0, **EVERYTHING)},
    "config_object": {
        "generation_config": GenerationConfig(max_new_tokens=5, do_sample=True, top_k=7, pad_token_id=0, **EVERYTHING)
    },
    "suppressed": {"suppress_tokens": list(range(0, 330, 2)), "num_beams": 3},
    "min_new_tokens": {"min_new_tokens": 4, "eos_token_id": list(range(0, 300))},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_settings(architecture, name):
    """Law: one member = that member, with generation settings that depend on ids, scores or lengths."""
    model, ensemble = alone(architecture)
    got = assert_same(model, ensemble, encode(*TEXTS), **SETTINGS[name])
    if name == "max_length":
        assert got.sequences.shape[1] == 30
    if name == "eos_list":
        assert len(got.scores) < 20


def test_stop_strings():
    """Law: one member = that member, with a stop string that ends the text early."""
    model, ensemble = alone("llama")
    inputs = encode(TEXTS[0])
    free = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, -20:-1].tolist()
    stop = next(text for text in map(ensemble.tokenizer.decode, free) if text.isascii() and text.strip())
    settings = {"stop_strings": [stop], "tokenizer": ensemble.tokenizer, "max_new_tokens": 20}
    got = assert_same(model, ensemble, inputs, do_sample=False, **settings)
    assert len(got.scores) < 20


def test_own_generation_config():
    """Law: one member = that member: its own generation config is the default."""
    model, tokenizer = pair("llama")
    model.generation_config.update(do_sample=True, top_k=5, repetition_penalty=1.3, max_new_tokens=6)
    ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)])
    torch.manual_seed(3)
    expected = model.generate(**encode(*TEXTS))
    torch.manual_seed(3)
    assert torch.equal(ensemble.generate(**encode(*TEXTS)), expected)
    assert expected.shape[1] == encode(*TEXTS)["input_ids"].shape[1] + 6
    assert ensemble.generation_config is not model.generation_config


def test_streamers():
    """Law: one member = that member: a streamer gets the same ids."""
    model, ensemble = alone("llama")
    streamed = []
    for generator in (model, ensemble):
        parrot = Parrot()
        generator.generate(**encode(TEXTS[0]), streamer=parrot, max_new_tokens=8, do_sample=False)
        assert parrot.ended
        streamed.append(parrot.ids)
    assert streamed[0] == streamed[1]
    assert len(streamed[0]) > 8


def test_text_streamer(capsys):
    """transformers' `TextStreamer` prints the generated text."""
    _, ensemble = alone("llama")
    streamer = TextStreamer(ensemble.tokenizer, skip_prompt=True)
    ids = ensemble.generate(**encode(TEXTS[0]), streamer=streamer, max_new_tokens=8, do_sample=False)
    assert capsys.readouterr().out.strip() == ensemble.tokenizer.decode(ids[0, -8:].tolist()).strip()


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3", "mixtral"])
def test_prompt_lookup(architecture, do_sample):
    """Law: one member = that member, if several tokens are proposed at once and some are rejected."""
    model, ensemble = alone(architecture)
    inputs = encode("the dogs ran and the dogs ran and the dogs ran and")
    settings = {"prompt_lookup_num_tokens": 4, "do_sample": do_sample, "max_new_tokens": 12}
    assert_same(model, ensemble, inputs, **settings)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_assistant_model(architecture):
    """Law: one member = that member, with an assistant of which some tokens are accepted."""
    model, ensemble = alone(architecture)
    assistant, _ = pair(architecture)
    with torch.no_grad():
        assistant.get_output_embeddings().weight.add_(
            torch.randn(assistant.get_output_embeddings().weight.shape, generator=torch.manual_seed(0)),
            alpha=0.1,
        )
    got = assert_same(model, ensemble, encode(TEXTS[0]), assistant_model=assistant, do_sample=False, max_new_tokens=12)
    plain = model.generate(**encode(TEXTS[0]), do_sample=False, max_new_tokens=12)
    assert torch.equal(got.sequences, plain)


@pytest.mark.parametrize("named", [False, True], ids=["active", "named"])
def test_peft_model(named):
    """Law: one member = that member, for a PEFT model: with its active adapter, or a named one."""
    base, tokenizer = pair("llama")
    inputs = encode(*TEXTS)
    without = base.generate(**inputs, max_new_tokens=8, do_sample=False)
    model = with_adapters(base)
    model.set_adapter("two")
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    if named:
        model.set_adapter("one")
    ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)], adapter_names=["two"] if named else None)
    got = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, expected)
    assert not torch.equal(got, without)
    assert model.active_adapter == ("one" if named else "two")


def test_stopping_criteria():
    """Law: one member = that member: stopping criteria see the same ids and scores."""
    model, ensemble = alone("llama")
    seen = []

    def criterion(input_ids, scores, **kwargs):
        seen.append((input_ids.tolist(), [entry.clone() for entry in scores]))
        return torch.tensor([input_ids.shape[1] >= 25] * len(input_ids))

    for generator in (model, ensemble):
        generator.generate(
            **encode(*TEXTS),
            stopping_criteria=StoppingCriteriaList([criterion]),
            max_new_tokens=20,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    half = len(seen) // 2
    assert half > 1
    for own, ours in zip(seen[:half], seen[half:], strict=True):
        assert own[0] == ours[0]
        assert all(torch.equal(a, b) for a, b in zip(own[1], ours[1], strict=True))
