"""Ensembles that write characters, bytes or common tokens: laws of decoding, and decoding as users do."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from transformers import LogitsProcessor, TextIteratorStreamer

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.ensemble.member_scores import score_members
from hf_rlae.vocabulary.grain import BYTE, CHARACTER, COMMON
from tests.support.different_tokenizers import TRACED, assert_close, encoded, forced, member, stepped
from tests.support.ensembles import TEXTS, Recorder, policy_of_text
from tests.support.models import pair
from tests.support.rlae import ensemble_of
from tests.support.tokenizers import byte_level_bpe, characters, raw_bytes, sentencepiece_bpe, unigram

WRITTEN = "x😀日é y"


@pytest.fixture(params=[CHARACTER, BYTE, COMMON])
def grain(request):
    return request.param


def short_bpe():
    return byte_level_bpe(310)


def trio(policy=None, **options):
    """Members with tokenizers of three kinds, which have some longer tokens in common."""
    members = [member(), member("gpt2", short_bpe, 1), member("gemma3", sentencepiece_bpe, 2)]
    return EnsembleForCausalLM.from_members(members, policy, **options)


def endless(ensemble):
    return {"suppress_tokens": [ensemble.union.stop_id]}


class Dictate(LogitsProcessor):
    """Forces a text, string by string of the grain."""

    def __init__(self, ensemble, text):
        self.ids = ensemble.tokenizer.completion_ids(text)
        self.number = 0

    def __call__(self, input_ids, scores):
        forced_scores = torch.full_like(scores, -torch.inf)
        forced_scores[:, self.ids[self.number % len(self.ids)]] = 0.0
        self.number += 1
        return forced_scores


# Laws of decoding


@pytest.mark.parametrize(
    ("grain", "mixing"),
    [(CHARACTER, "linear"), (BYTE, "linear"), (COMMON, "linear"), (BYTE, "log"), (COMMON, "power"), (BYTE, "contrast")],
)
def test_teacher_forcing_equals_sampling(grain, mixing):
    """Law: teacher forcing gives the distributions of sampling; only strings of the grain have probability."""
    ensemble = trio(policy_of_text, span_length=3, grain=grain, mixing=mixing)
    inputs = encoded(ensemble, *TEXTS)
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=12, do_sample=True, top_k=0, **endless(ensemble), **TRACED)
    logits = stepped(out)
    assert_close(forced(ensemble, inputs, out.sequences), logits)
    silent = torch.ones(ensemble.union.size, dtype=torch.bool)
    silent[[*ensemble.union.id_of.values(), ensemble.union.stop_id]] = False
    assert silent.any()
    assert (logits[..., silent] == -torch.inf).all()


def test_rows_padding_and_the_cache_change_nothing(grain):
    """Law: a row of a batch = the row alone, with padding and without a cache."""
    ensemble = trio(policy_of_text, span_length=3, grain=grain)
    options = {"max_new_tokens": 9, "do_sample": False, **endless(ensemble), **TRACED}
    together = ensemble.generate(**encoded(ensemble, *TEXTS), **options)
    for row, text in enumerate(TEXTS):
        ids = encoded(ensemble, text)["input_ids"]
        pads = torch.full((1, 3), ensemble.tokenizer.pad_token_id)
        mask = torch.cat([torch.zeros_like(pads), torch.ones_like(ids)], 1)
        alone = ensemble.generate(torch.cat([pads, ids], 1), attention_mask=mask, use_cache=row != 0, **options)
        assert torch.equal(alone.sequences[0, -9:], together.sequences[row, -9:])
        assert_close(stepped(together)[row], stepped(alone)[0])


def test_the_order_of_members_does_not_matter(grain):
    """Law: the same probability of every byte string, in any order of the members."""
    members = [member("llama", raw_bytes), member("gpt2", sentencepiece_bpe, 1), member("llama", seed=2)]
    weights, found = [0.2, 0.3, 0.5], []
    for order in ([0, 1, 2], [2, 0, 1]):
        ensemble = EnsembleForCausalLM.from_members(
            [members[k] for k in order], StaticPolicy([weights[k] for k in order]), grain=grain
        )
        union = ensemble.union
        out = ensemble.generate(**encoded(ensemble, TEXTS[1]), max_new_tokens=10, do_sample=False, **TRACED)
        columns = [union.id_of[string] for string in sorted(union.id_of)] + [union.stop_id]
        text = [union.pieces[i] for i in out.sequences[0, -10:].tolist()]
        found.append((sorted(union.id_of), text, stepped(out)[0].softmax(-1)[:, columns]))
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2], atol=2e-6, rtol=0)


@pytest.mark.parametrize(("tokenizer", "mixing"), [(sentencepiece_bpe, "linear"), (raw_bytes, "log")])
def test_copies_of_a_member_are_that_member(grain, tokenizer, mixing):
    """Law: an ensemble of copies of one member = an ensemble of that member alone."""
    alone = EnsembleForCausalLM.from_members([member("gpt2", tokenizer, 1)], grain=grain)
    copies = EnsembleForCausalLM.from_members(
        [member("gpt2", tokenizer, 1)] * 3, policy_of_text, grain=grain, mixing=mixing
    )
    inputs = encoded(alone, *TEXTS)
    one, three = (
        ensemble.generate(**inputs, max_new_tokens=9, do_sample=False, **TRACED) for ensemble in (alone, copies)
    )
    assert torch.equal(one.sequences, three.sequences)
    assert_close(stepped(three), stepped(one))


def test_beams_have_the_scores_of_teacher_forcing(grain):
    ensemble = trio(policy_of_text, span_length=2, grain=grain)
    inputs = encoded(ensemble, *TEXTS[:2])
    out = ensemble.generate(
        **inputs,
        max_new_tokens=8,
        num_beams=3,
        num_return_sequences=2,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        **endless(ensemble),
    )
    rows = {name: value.repeat_interleave(2, 0) for name, value in inputs.items()}
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    logps = forced(ensemble, rows, out.sequences).log_softmax(-1)
    scores = logps.gather(-1, tokens[..., None])[..., 0].sum(1)
    torch.testing.assert_close(out.sequences_scores, scores, atol=2e-4, rtol=0)
    assert not out.member_logps.isnan().any()


def test_proposed_tokens_change_nothing(grain):
    """Prompt lookup proposes the prompt's tokens, which may be longer than what is written."""
    ensemble = trio(policy_of_text, span_length=2, grain=grain)
    inputs = encoded(ensemble, "the the the the the")
    options = {"max_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True, **endless(ensemble)}
    plain = ensemble.generate(**inputs, **options)
    got = ensemble.generate(**inputs, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(got.sequences, plain.sequences)
    torch.testing.assert_close(got.member_logps, plain.member_logps, atol=1e-4, rtol=1e-4)


def test_a_second_turn_with_the_same_cache_is_a_new_call(grain):
    ensemble = trio(policy_of_text, span_length=3, grain=grain)
    options = {"max_new_tokens": 6, "do_sample": False, **endless(ensemble)}
    cache = ensemble.new_cache()
    first = ensemble.generate(**encoded(ensemble, TEXTS[0]), past_key_values=cache, **options)
    more = torch.cat([first, encoded(ensemble, " and then")["input_ids"]], 1)
    mask = torch.ones_like(more)
    expected = ensemble.generate(more, attention_mask=mask, **options)
    assert torch.equal(ensemble.generate(more, attention_mask=mask, past_key_values=cache, **options), expected)


def test_recorded_log_probabilities_are_those_of_the_mixture_and_of_scoring(grain):
    weights = torch.tensor([0.3, 0.3, 0.4])
    ensemble = trio(StaticPolicy(weights.tolist()), span_length=2, grain=grain)
    inputs = encoded(ensemble, *TEXTS)
    width = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=9, do_sample=True, top_k=0, **endless(ensemble), **TRACED)
    tokens = out.sequences[:, width:]
    logps = stepped(out).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close((out.member_logps.exp() @ weights).log(), logps, atol=1e-4, rtol=0)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    found = score_members(ensemble, out.sequences, mask, width, span_weights=out.span_weights)
    torch.testing.assert_close(found, out.member_logps, atol=2e-5, rtol=1e-4)


def test_a_learned_policy_observes_members(grain):
    ensemble = ensemble_of("mappo", "different", grain=grain)
    inputs = encoded(ensemble, *TEXTS)
    out = ensemble.generate(**inputs, max_new_tokens=7, do_sample=False, **endless(ensemble), **TRACED)
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def test_members_without_tokens_for_all_bytes(grain):
    """A recurrent member that has whole characters only follows texts byte by byte."""
    members = [member("llama", raw_bytes), member("rwkv", characters, 1), member("llama", unigram, 2)]
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_text, span_length=3, grain=grain)
    inputs = encoded(ensemble, "Once 日本 é 🤖")
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=12, do_sample=True, top_k=0, **endless(ensemble), **TRACED)
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))
    dictated = ensemble.generate(
        **inputs, max_new_tokens=12, do_sample=False, logits_processor=[Dictate(ensemble, WRITTEN)], **TRACED
    )
    assert_close(forced(ensemble, inputs, dictated.sequences), stepped(dictated))


def test_stop_has_the_mass_of_end_ids_even_of_those_with_text(grain):
    """Law: STOP has the weighted mass of all end ids; an end id that is ordinary text lends nothing to its bytes."""
    model, tokenizer = member()
    end = next(i for token, i in tokenizer.get_vocab().items() if len(token) == 3 and token.isalpha())
    second = member("gpt2", sentencepiece_bpe, 1)
    ensemble = EnsembleForCausalLM.from_members(
        [(model, tokenizer), second], StaticPolicy([0.6, 0.4]), grain=grain, end_token_ids=[[0, end], []]
    )
    out = ensemble.generate(**encoded(ensemble, TEXTS[0]), max_new_tokens=1, **TRACED)
    with torch.no_grad():
        own = model(tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]).logits[0, -1].softmax(-1)
    probs = out.logits[0][0].softmax(-1)
    assert float(probs[ensemble.union.stop_id]) == pytest.approx(0.6 * float(own[[0, end]].sum()), abs=1e-6)
    inputs = encoded(ensemble, *TEXTS)
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=6, do_sample=True, top_k=0, **endless(ensemble), **TRACED)
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def test_members_whose_context_ends(grain):
    given = [member(), pair("gpt2", 1, sentencepiece_bpe(), max_position_embeddings=14)]
    ensemble = EnsembleForCausalLM.from_members(given, policy_of_text, grain=grain)
    inputs = encoded(ensemble, "the dogs", "The big dogs ran")
    out = ensemble.generate(
        **inputs, max_new_tokens=30, do_sample=False, return_dict_in_generate=True, **endless(ensemble)
    )
    lost = out.member_logps.isnan().long()
    assert (lost.diff(dim=1) >= 0).all()
    assert lost[:, 0].tolist() == [[0, 0], [0, 0]]
    assert lost[:, -1].tolist() == [[0, 1], [0, 1]]


# Lengths, streams and stops


def test_spans_and_lengths_count_strings(grain):
    recorder = Recorder()
    ensemble = trio(recorder, span_length=2, grain=grain)
    inputs = encoded(ensemble, TEXTS[0])
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, min_new_tokens=7, max_new_tokens=7, do_sample=True)
    written = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(written) == 7
    assert ensemble.union.stop_id not in written
    assert len(recorder.asked) == 4
    if grain == BYTE:
        assert all(len(ensemble.union.pieces[i]) == 1 for i in written)


@pytest.mark.parametrize("prefix", ["", "é"])
def test_streams_have_no_parts_of_characters(grain, prefix):
    ensemble = trio(grain=grain)
    inputs = encoded(ensemble, TEXTS[0])
    streamer = TextIteratorStreamer(ensemble.tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = prefix + WRITTEN
    dictate = Dictate(ensemble, text)
    ensemble.generate(
        **inputs, max_new_tokens=len(dictate.ids), do_sample=False, logits_processor=[dictate], streamer=streamer
    )
    chunks = list(streamer)
    assert "".join(chunks) == text
    assert "\ufffd" not in text
    assert not any("\ufffd" in chunk for chunk in chunks)


@pytest.mark.parametrize("stop", ["日", "é y", "😀"])
def test_stop_strings_may_be_longer_than_what_is_written_at_once(grain, stop):
    ensemble = trio(grain=grain)
    inputs = encoded(ensemble, TEXTS[0])
    out = ensemble.generate(
        **inputs,
        max_new_tokens=40,
        do_sample=False,
        logits_processor=[Dictate(ensemble, WRITTEN)],
        stop_strings=[stop],
        tokenizer=ensemble.tokenizer,
    )
    written = ensemble.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    assert written == WRITTEN[: WRITTEN.index(stop) + len(stop)]


@pytest.mark.parametrize("draw", ["token", "word", "span"])
def test_draws_hold_for_strings_words_and_spans(grain, draw):
    ensemble = trio(StaticPolicy([0.3, 0.3, 0.4]), span_length=4, grain=grain, draw=draw)
    inputs = encoded(ensemble, TEXTS[0])
    torch.manual_seed(0)
    dictate = Dictate(ensemble, "the dogs ran to")
    out = ensemble.generate(
        **inputs, max_new_tokens=30, do_sample=True, logits_processor=[dictate], return_dict_in_generate=True
    )
    drawn = (~out.member_logps[0].isnan()).int().argmax(-1).tolist()
    assert len(set(drawn)) > 1
    pieces = [ensemble.union.pieces[i] for i in out.sequences[0, inputs["input_ids"].shape[1] :].tolist()]
    for at, (old, new) in enumerate(itertools.pairwise(drawn)):
        if draw == "word":
            assert old == new or pieces[at].startswith(b" ")
        elif draw == "span":
            assert old == new or (at + 1) % 4 == 0


# Tokenizers, copies and files


def test_every_id_has_a_name_of_its_own(grain):
    given = [member("llama", characters), member("gpt2", raw_bytes, 1)]
    ensemble = EnsembleForCausalLM.from_members(given, grain=grain)
    tokenizer, size = ensemble.tokenizer, ensemble.union.size
    names = tokenizer.convert_ids_to_tokens(list(range(size)))
    assert len(tokenizer) == len(set(names)) == size
    assert tokenizer.convert_tokens_to_ids(names) == list(range(size))
    assert tokenizer.get_vocab() == dict(zip(names, range(size), strict=True))
    rows = [tokenizer.completion_ids(text) for text in (WRITTEN, "two\n\tlines")]
    assert tokenizer.batch_decode(rows) == [WRITTEN, "two\n\tlines"]


def test_copies_and_files_keep_the_grain(tmp_path):
    ensemble = trio(StaticPolicy([0.3, 0.3, 0.4]), grain=BYTE)
    inputs = encoded(ensemble, *TEXTS)
    ensemble.save_pretrained(tmp_path, save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.grain == BYTE
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = ensemble.generate(**inputs, **options)
    for other in (copy.deepcopy(ensemble), loaded):
        assert torch.equal(other.generate(**inputs, **options), expected)
    tokens = EnsembleForCausalLM.from_pretrained(tmp_path, grain="token")
    assert tokens.union.stop_id != ensemble.union.stop_id
    assert tokens.generation_config.eos_token_id == tokens.config.eos_token_id == tokens.union.stop_id
