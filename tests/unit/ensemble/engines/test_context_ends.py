"""Members with different tokenizers at the end of a context: the others continue, whatever the weights are."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EntropyPolicy, StaticPolicy
from hf_rlae.errors import InputError
from tests.support.ensembles import columns_read, encode, endless
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

PROMPT = encode("the dogs ran 12")
COLUMNS = PROMPT["input_ids"].shape[1]
SPAN = 4
TRACED = {"return_dict_in_generate": True, "do_sample": False, "max_new_tokens": 40}


def short_and_long(second=sentencepiece_bpe):
    """Members whose contexts end after 22 tokens, and never in these tests."""
    return [pair("llama", 0, max_position_embeddings=22), pair("gpt2", 1, second())]


def built(members, policy, **options):
    return endless(members, policy, span_length=SPAN, **options)


def dropped_at(out):
    """The index of the first completion token that member 0 has not written."""
    return int(out.member_logps[0, :, 0].isnan().int().argmax())


@pytest.mark.parametrize("second", [byte_level_bpe, sentencepiece_bpe], ids=["one_tokenizer", "two_tokenizers"])
def test_the_others_continue_if_the_member_with_all_the_weight_drops_out(second):
    """Law: as with one tokenizer, the text goes on; `span_weights` has the weights that were used."""
    ensemble = built(short_and_long(second), StaticPolicy([1.0, 0.0]))
    out = ensemble.generate(**PROMPT, **TRACED)
    assert out.sequences.shape[1] == COLUMNS + 40
    at = dropped_at(out)
    assert 0 < at < 20
    assert bool(out.member_logps[0, :at, 1].isnan().all())
    assert bool(out.member_logps[0, at:, 0].isnan().all())
    assert bool(out.member_logps[0, at:, 1].isfinite().all())
    for weights, start in zip(out.span_weights[0].tolist(), out.span_starts.tolist(), strict=True):
        assert weights == ([1.0, 0.0] if start < at else [0.0, 1.0]), start


@pytest.mark.parametrize("second", [byte_level_bpe, sentencepiece_bpe], ids=["one_tokenizer", "two_tokenizers"])
def test_the_weights_of_the_others_are_renormalised(second):
    members = [*short_and_long(second), pair("llama", 2)]
    out = built(members, StaticPolicy([0.5, 0.3, 0.2])).generate(**PROMPT, **TRACED)
    at = dropped_at(out)
    assert 0 < at < 40
    torch.testing.assert_close(out.span_weights[0, 0], torch.tensor([0.5, 0.3, 0.2]))
    torch.testing.assert_close(out.span_weights[0, -1], torch.tensor([0.0, 0.6, 0.4]))


def test_equal_weights_if_the_policy_gives_the_others_none():
    members = [*short_and_long(), pair("llama", 2)]
    out = built(members, StaticPolicy([1.0, 0.0, 0.0])).generate(**PROMPT, **TRACED)
    assert out.span_weights[0, -1].tolist() == [0.0, 0.5, 0.5]
    assert bool(out.member_logps[0, -1, 1:].isfinite().any())


def test_rows_drop_out_on_their_own():
    """A short row keeps its member when a long row has lost it, and is what it is alone."""
    ensemble = built(short_and_long(), StaticPolicy([1.0, 0.0]))
    texts = ["the dogs ran 12", "the"]
    together = ensemble.generate(**encode(*texts), **TRACED)
    for row, text in enumerate(texts):
        alone = ensemble.generate(**encode(text), **TRACED)
        torch.testing.assert_close(together.member_logps[row], alone.member_logps[0], atol=1e-4, rtol=0, equal_nan=True)
        torch.testing.assert_close(together.span_weights[row], alone.span_weights[0])


def test_teacher_forcing_equals_generation_beyond_the_drop():
    ensemble = built(short_and_long(), StaticPolicy([1.0, 0.0]))
    out = ensemble.generate(**PROMPT, **TRACED, output_logits=True)
    with torch.no_grad():
        forced = ensemble(out.sequences[:, :-1], prompt_length=COLUMNS).logits[0, COLUMNS - 1 :]
    torch.testing.assert_close(forced.softmax(-1), torch.stack(out.logits)[:, 0].softmax(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "top_k": 0}, {"use_cache": False}])
def test_other_decoders(options):
    ensemble = built(short_and_long(), StaticPolicy([1.0, 0.0]))
    out = ensemble.generate(**PROMPT, **{**TRACED, **options})
    assert out.sequences.shape[1] == COLUMNS + 40
    assert out.span_weights[0, -1].tolist() == [0.0, 1.0]


def test_draws_go_to_the_others():
    """Members without weight are drawn if those with weight have dropped out."""
    ensemble = built(short_and_long(), StaticPolicy([1.0, 0.0]), draw="token")
    out = ensemble.generate(**PROMPT, **{**TRACED, "do_sample": True, "top_k": 0})
    assert out.sequences.shape[1] == COLUMNS + 40
    assert out.span_weights[0, -1].tolist() == [0.0, 1.0]
    assert bool(out.member_logps[0, -1, 1].isfinite())


def test_a_member_without_weight_does_not_run_before_it_is_needed():
    ensemble = built(short_and_long(), StaticPolicy([1.0, 0.0]))
    with columns_read(ensemble.members[1].model) as calls:
        ensemble.generate(**PROMPT, **{**TRACED, "max_new_tokens": 5})
    assert not any(calls)


def test_a_policy_that_observes_members():
    out = built(short_and_long(), EntropyPolicy()).generate(**PROMPT, **TRACED)
    assert out.sequences.shape[1] == COLUMNS + 40
    assert out.span_weights[0, -1].tolist() == [0.0, 1.0]


# Texts that no member can continue


def all_short():
    members = [pair("llama", 0, raw_bytes(), max_position_embeddings=30), pair("gpt2", 1, max_position_embeddings=24)]
    return EnsembleForCausalLM.from_members(members, span_length=SPAN)


DECODERS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 2},
    "trace": {"do_sample": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)
def test_a_text_that_nobody_continues_and_that_must_not_end(options):
    ensemble = all_short()
    inputs = ensemble.tokenizer(["Once upon a time"], return_tensors="pt")
    with pytest.raises(InputError, match=r"min_new_tokens.*contexts of all members are outgrown"):
        ensemble.generate(**inputs, min_new_tokens=40, max_new_tokens=40, **options)


def test_it_may_end(caplog):
    """Without `min_new_tokens` the text ends there."""
    ensemble = all_short()
    inputs = ensemble.tokenizer(["Once upon a time"], return_tensors="pt")
    out = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False, bad_words_ids=[[3]])
    assert int(out[0, -1]) == ensemble.union.stop_id
    assert out.shape[1] < inputs["input_ids"].shape[1] + 40
    assert "no member can continue a text" in caplog.text
