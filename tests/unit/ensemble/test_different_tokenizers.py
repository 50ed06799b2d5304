"""Laws of ensembles whose members have different tokenizers, on models of every architecture."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from tests.support.different_tokenizers import TRACED, assert_close, encoded, forced, member, stepped, trio
from tests.support.ensembles import TEXTS, Recorder, Schedule, columns_read, policy_of_text
from tests.support.models import ARCHITECTURES, RECURRENT, WINDOW, pair, with_adapters
from tests.support.tiers import slow
from tests.support.tokenizers import (
    byte_level_bpe,
    characters,
    raw_bytes,
    sentencepiece_bpe,
    unigram,
    wordpiece,
)

LONGER = f"{TEXTS[0]} a little girl"
quick = settings(max_examples=10)


# Teacher forcing


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_teacher_forcing_equals_stepping(architecture):
    """Law: `forward` over a whole text = token-by-token calls, for every architecture."""
    ensemble = EnsembleForCausalLM.from_members(
        [member("llama", raw_bytes), member(architecture, sentencepiece_bpe, 1)],
        policy_of_text,
        span_length=3,
    )
    inputs = encoded(ensemble, TEXTS[0])
    out = ensemble.generate(
        **inputs,
        max_new_tokens=2 * WINDOW,
        do_sample=False,
        suppress_tokens=[ensemble.union.stop_id],
        **TRACED,
    )
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def product(mixing):
    """The settings of a mixing; a product of experts needs strings that every member can write."""
    return {"mixing": mixing, "grain": "byte" if mixing == "log" else "token"}


@quick
@given(
    first=st.floats(0.05, 0.9),
    span_length=st.integers(1, 5),
    mixing=st.sampled_from(["linear", "log", "power"]),
    seed=st.integers(0, 99),
)
def test_teacher_forcing_of_samples(first, span_length, mixing, seed):
    """Law: teacher forcing of sampled texts gives the log-probabilities of sampling, in a padded batch."""
    ensemble = trio(StaticPolicy([first, (1 - first) / 2, (1 - first) / 2]), **product(mixing), span_length=span_length)
    inputs = encoded(ensemble, *TEXTS)
    torch.manual_seed(seed)
    out = ensemble.generate(
        **inputs,
        max_new_tokens=9,
        do_sample=True,
        top_k=0,
        suppress_tokens=[ensemble.union.stop_id],
        **TRACED,
    )
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def test_without_a_cache():
    """Law: `use_cache=False` generates the same text from the same distributions."""
    ensemble = trio(policy_of_text, span_length=3)
    inputs = encoded(ensemble, *TEXTS)
    kept, run = (
        ensemble.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache, **TRACED)
        for use_cache in (True, False)
    )
    assert torch.equal(kept.sequences, run.sequences)
    assert_close(stepped(run), stepped(kept))


def test_kept_probabilities_are_those_of_a_run_from_scratch():
    """Law: the stored probabilities of every reading equal those of a new forward pass over its ids."""
    ensemble = trio(policy_of_text, span_length=2)
    cache_of_call = ensemble.new_cache()
    ensemble.generate(
        **encoded(ensemble, *TEXTS), max_new_tokens=20, do_sample=True, top_k=0, past_key_values=cache_of_call
    )
    compared = 0
    for run in cache_of_call.runs:
        for row in run.rows:
            for reading in row.readings:
                ids = row.settled.after(0) + reading.ids
                with torch.no_grad():
                    logits = run.member.model(torch.tensor([ids])).logits[0, -1].float()
                logits[run.alignment.excluded_ids] = -torch.inf
                kept = run.store.probs[reading.entry, :-1]
                torch.testing.assert_close(kept, logits.softmax(-1), atol=1e-5, rtol=0)
                compared += 1
    assert compared >= 9


# Batches


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "rwkv", "mamba"])
def test_rows_are_independent(architecture):
    """Law: a row of a batch = the row alone, for any other rows."""
    ensemble = EnsembleForCausalLM.from_members(
        [member("llama", raw_bytes), member(architecture, byte_level_bpe, 1)], policy_of_text, span_length=3
    )
    together = ensemble.generate(
        **encoded(ensemble, *TEXTS, LONGER),
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[ensemble.union.stop_id],
        **TRACED,
    )
    for row, text in enumerate([*TEXTS, LONGER]):
        alone = ensemble.generate(
            **encoded(ensemble, text),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=[ensemble.union.stop_id],
            **TRACED,
        )
        assert torch.equal(alone.sequences[0, -12:], together.sequences[row, -12:])
        assert_close(stepped(together)[row], stepped(alone)[0])


@pytest.mark.parametrize("padding", [1, 5, 64])
def test_left_padding_changes_nothing(padding):
    """Law: padding on the left changes nothing."""
    ensemble = trio(policy_of_text, span_length=3)
    inputs = encoded(ensemble, TEXTS[0])
    pads = torch.full((1, padding), ensemble.tokenizer.pad_token_id)
    padded = {
        "input_ids": torch.cat([pads, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.zeros_like(pads), inputs["attention_mask"]], dim=1),
    }
    plain = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False, **TRACED)
    got = ensemble.generate(**padded, max_new_tokens=8, do_sample=False, **TRACED)
    assert torch.equal(got.sequences[:, padding:], plain.sequences)
    assert_close(stepped(got), stepped(plain))


# Members with all the weight, and their order


SUPPRESSED = {
    "byte_level_bpe": [],
    "raw_bytes": [],
    "sentencepiece_bpe": [0, 1],
    "unigram": [0],
    "characters": [0, 1],
}


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("architecture", ["llama", *slow("gpt2", "rwkv")])
def test_all_weight_on_one(architecture, which):
    """Law: with all weight on a member, the ensemble generates that member's own greedy text, including the stop."""
    tokenizers = [byte_level_bpe, raw_bytes, unigram]
    members = [member(architecture, tokenizer, 5 + k) for k, tokenizer in enumerate(tokenizers)]
    weights = [float(k == which) for k in range(3)]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy(weights))
    model, tokenizer = members[which]
    for text in (*TEXTS[:2], "she said hello to the", "the other dog", "walked"):
        own = tokenizer(text, return_tensors="pt")["input_ids"]
        expected = model.generate(
            own,
            max_new_tokens=30,
            do_sample=False,
            suppress_tokens=SUPPRESSED[tokenizers[which].__name__] or None,
        )
        ended = int(expected[0, -1]) == tokenizer.eos_token_id
        written = tokenizer.decode(expected[0, own.shape[1] :].tolist(), skip_special_tokens=True)
        inputs = encoded(ensemble, text)
        got = ensemble.generate(**inputs, max_new_tokens=120, do_sample=False)
        completion = got[0, inputs["input_ids"].shape[1] :].tolist()
        raw = b"".join(ensemble.union.pieces[i] or b"" for i in completion)
        reference = own_bytes(ensemble, which, expected[0, own.shape[1] :].tolist())
        if ended:
            assert raw == reference, written
            assert completion[-1] == ensemble.union.stop_id
        else:
            assert raw[: len(reference)] == reference, written


def own_bytes(ensemble, which, ids):
    pieces = ensemble.engine.vocabularies[which].pieces
    return b"".join(pieces[i] or b"" for i in ids)


def test_order_of_two():
    """Law: the order of members does not matter: the same probability of every byte string, bit-exact for two."""
    members = [member("llama", raw_bytes), member("gpt2", sentencepiece_bpe, 1)]
    one = EnsembleForCausalLM.from_members(members, StaticPolicy([0.3, 0.7]))
    other = EnsembleForCausalLM.from_members(members[::-1], StaticPolicy([0.7, 0.3]))
    outs = [e.generate(**encoded(e, TEXTS[0]), max_new_tokens=10, do_sample=False, **TRACED) for e in (one, other)]
    texts = [
        b"".join(e.union.pieces[i] or b"" for i in out.sequences[0, -10:].tolist())
        for e, out in zip((one, other), outs, strict=True)
    ]
    assert texts[0] == texts[1]
    for first, second in zip(outs[0].logits, outs[1].logits, strict=True):
        for raw, i in one.union.id_of.items():
            assert first[0, i] == second[0, other.union.id_of[raw]]
        assert first[0, one.union.stop_id] == second[0, other.union.stop_id]


def test_order_of_three():
    """Law: the order of three members does not matter, up to rounding."""
    members = [
        member("llama", raw_bytes),
        member("gpt2", sentencepiece_bpe, 1),
        member("llama", byte_level_bpe, 2),
    ]
    weights = [0.2, 0.3, 0.5]
    one = EnsembleForCausalLM.from_members(members, StaticPolicy(weights))
    other = EnsembleForCausalLM.from_members(members[::-1], StaticPolicy(weights[::-1]))
    inputs = encoded(one, TEXTS[1])
    out = one.generate(**inputs, max_new_tokens=10, do_sample=False, **TRACED)
    got = other.generate(**encoded(other, TEXTS[1]), max_new_tokens=10, do_sample=False, **TRACED)
    pairs_of_ids = torch.tensor([[i, other.union.id_of[raw]] for raw, i in one.union.id_of.items()])
    first = stepped(out)[0].softmax(-1)[:, pairs_of_ids[:, 0]]
    second = stepped(got)[0].softmax(-1)[:, pairs_of_ids[:, 1]]
    torch.testing.assert_close(second, first, atol=2e-6, rtol=0)


# Probabilities


@quick
@given(
    weights=st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    mixing=st.sampled_from(["linear", "log", "power"]),
)
def test_mixtures_sum_to_one(weights, dtype, mixing):
    """Law: each mixture sums to 1, special tokens have no mass, and STOP has the mass of all end ids."""
    members = [member(), member("gpt2", raw_bytes, 1), member("llama", sentencepiece_bpe, 2)]
    ensemble = EnsembleForCausalLM.from_members(
        [(type(model)(model.config).to(dtype).eval() if dtype != torch.float32 else model, t) for model, t in members],
        StaticPolicy(weights),
        **product(mixing),
    )
    out = ensemble.generate(**encoded(ensemble, *TEXTS), max_new_tokens=6, do_sample=True, top_k=0, **TRACED)
    logits = stepped(out)
    assert logits.dtype == torch.float32
    probs = logits.log_softmax(-1).exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:2]), atol=1e-6, rtol=0)
    silent = [i for i, piece in enumerate(ensemble.union.pieces) if piece is None and i != ensemble.union.stop_id]
    assert silent
    assert float(probs[..., silent].max()) == 0.0


def test_stop_is_the_mass_of_all_end_ids():
    """Law: STOP has the weighted sum of the mass of the members' end ids, which is 0 for a member without end ids."""
    first, second = member(), member("gpt2", sentencepiece_bpe, 1)
    ends = [[0, 300, 301], []]
    ensemble = EnsembleForCausalLM.from_members([first, second], StaticPolicy([0.6, 0.4]), end_token_ids=ends)
    text = TEXTS[0]
    out = ensemble.generate(**encoded(ensemble, text), max_new_tokens=1, **TRACED)
    with torch.no_grad():
        own = first[0](first[1](text, return_tensors="pt")["input_ids"]).logits[0, -1].softmax(-1)
    got = out.logits[0][0].softmax(-1)[ensemble.union.stop_id]
    assert float(got) == pytest.approx(0.6 * float(own[[0, 300, 301]].sum()), abs=1e-6)


# Spans, weights, beams


@pytest.mark.parametrize("span_length", [1, 3, 8])
def test_the_policy_is_asked_once_per_span(span_length):
    """Law: the policy is called exactly once per span and row, on the newest text."""
    recorder = Recorder()
    ensemble = trio(recorder, span_length=span_length)
    inputs = encoded(ensemble, *TEXTS)
    out = ensemble.generate(
        **inputs, max_new_tokens=8, do_sample=False, suppress_tokens=[ensemble.union.stop_id], **TRACED
    )
    width = inputs["input_ids"].shape[1]
    spans = range(-(-8 // span_length))
    assert len(recorder.asked) == len(spans)
    for span in spans:
        for row in range(3):
            ids = out.sequences[row, : width + span * span_length].tolist()
            text = ensemble.tokenizer.decode(ids, skip_special_tokens=True)
            assert recorder.asked[span][row] == (span, text)


def test_beams_keep_their_weights_and_readings():
    """Law: teacher forcing of a returned beam gives the score of the beam."""
    ensemble = trio(policy_of_text, span_length=2)
    inputs = encoded(ensemble, *TEXTS)
    out = ensemble.generate(
        **inputs,
        max_new_tokens=9,
        num_beams=4,
        num_return_sequences=2,
        do_sample=False,
        length_penalty=0.0,
        suppress_tokens=[ensemble.union.stop_id],
        return_dict_in_generate=True,
        output_scores=True,
    )
    width = inputs["input_ids"].shape[1]
    rows = {name: value.repeat_interleave(2, 0) for name, value in inputs.items()}
    logps = forced(ensemble, rows, out.sequences)
    logps[..., ensemble.union.stop_id] = -torch.inf
    tokens = out.sequences[:, width:]
    # transformers normalises scores before it suppresses tokens
    full = forced(ensemble, rows, out.sequences).log_softmax(-1)
    scores = full.gather(-1, tokens[..., None])[..., 0].sum(1)
    torch.testing.assert_close(out.sequences_scores, scores, atol=2e-4, rtol=0)
    assert not out.member_logps.isnan().any()


def test_a_member_without_weight_is_not_run():
    """Law: a member with weight 0 does not run in that span, and reads the missed text in one pass when needed."""
    members = [member(), member("gpt2", raw_bytes, 1)]
    ensemble = EnsembleForCausalLM.from_members(members, Schedule([1, 0], [1, 0], [0.5, 0.5]), span_length=3)
    inputs = encoded(ensemble, TEXTS[0])
    with columns_read(*(model for model, _ in members)) as calls:
        out = ensemble.generate(
            **inputs, max_new_tokens=9, do_sample=False, suppress_tokens=[ensemble.union.stop_id], **TRACED
        )
    assert len(calls[0]) == 9
    assert len(calls[1]) == 3
    assert out.member_logps[0, :6, 1].isnan().all()
    assert not out.member_logps[0, 6:].isnan().any()
    completion = out.sequences[0, inputs["input_ids"].shape[1] :][:6].tolist()
    prompt = members[1][1](TEXTS[0])["input_ids"]
    raw = b"".join(ensemble.union.pieces[i] for i in completion)
    with torch.no_grad():
        ids = list(prompt) + list(ensemble.engine.vocabularies[1].canonical_ids(raw))
        own = members[1][0](torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    seventh = out.sequences[0, inputs["input_ids"].shape[1] + 6]
    piece = ensemble.union.pieces[int(seventh)]
    if len(piece) == 1:  # bytes have one segmentation, so the member's state is as if it had run in every step
        (own_id,) = ensemble.engine.vocabularies[1].canonical_ids(piece)
        assert float(out.member_logps[0, 6, 1]) == pytest.approx(float(own[own_id]), abs=1e-4)


# State


def test_calls_do_not_know_one_another():
    """Law: a call after another one, or after an exception in the middle of one, equals a first call."""
    ensemble = trio(policy_of_text, span_length=3)
    inputs, others = encoded(ensemble, *TEXTS), encoded(ensemble, LONGER)
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = ensemble.generate(**inputs, **options)

    class Broken(Exception):
        pass

    def fails(input_ids, scores, **kwargs):
        raise Broken

    ensemble.generate(**others, **options)
    with pytest.raises(Broken):
        ensemble.generate(**others, **options, stopping_criteria=[fails])
    assert torch.equal(ensemble.generate(**inputs, **options), expected)


@pytest.mark.parametrize("lookup", [2, 5])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "rwkv"])
def test_proposed_tokens(architecture, lookup):
    """Law: prompt lookup generates the greedy text, and rejected tokens change nothing."""
    ensemble = EnsembleForCausalLM.from_members(
        [member("llama", byte_level_bpe), member(architecture, raw_bytes, 1)], policy_of_text, span_length=2
    )
    inputs = encoded(ensemble, "a a a a a a a a")
    options = {
        "max_new_tokens": 14,
        "do_sample": False,
        "suppress_tokens": [ensemble.union.stop_id],
        **TRACED,
    }
    plain = ensemble.generate(**inputs, **options)
    looked_up = ensemble.generate(**inputs, **options, prompt_lookup_num_tokens=lookup, max_matching_ngram_size=1)
    assert torch.equal(plain.sequences, looked_up.sequences)
    torch.testing.assert_close(looked_up.span_weights, plain.span_weights)
    torch.testing.assert_close(looked_up.member_logps, plain.member_logps, atol=1e-4, rtol=0)


def test_a_sampled_batch_is_reproducible():
    """Law: equal seeds give equal texts."""
    ensemble = trio(policy_of_text)
    inputs = encoded(ensemble, *TEXTS)
    texts = []
    for _ in range(2):
        torch.manual_seed(7)
        texts.append(ensemble.generate(**inputs, max_new_tokens=8, do_sample=True, num_return_sequences=2))
    assert torch.equal(*texts)


# Members without next-token mass


def test_a_member_that_cannot_write_a_character():
    """A member without byte fallback skips characters that it has no token for, and continues after them."""
    members = [member("llama", raw_bytes), member("gpt2", characters, 1)]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy([0.5, 0.5]))
    inputs = encoded(ensemble, "the 字 dog")
    unknown = members[1][1].unk_token_id
    own = ensemble.engine.encoder(tuple(inputs["input_ids"][0].tolist()))[1]
    assert unknown not in own
    assert members[1][1].decode(own).split() == ["the", "dog"]
    out = ensemble.generate(**inputs, max_new_tokens=6, do_sample=False, **TRACED)
    probs = stepped(out).log_softmax(-1).exp().sum(-1)
    torch.testing.assert_close(probs, torch.ones_like(probs), atol=1e-6, rtol=0)


def test_a_member_drops_out_at_the_end_of_its_context(caplog):
    """If a text is longer than one member's context, that member drops out with a warning; the others continue."""
    members = [member("llama", raw_bytes), pair("gpt2", 1, byte_level_bpe(), max_position_embeddings=16)]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy([0.5, 0.5]))
    inputs = encoded(ensemble, "Once upon a time")
    out = ensemble.generate(
        **inputs, max_new_tokens=60, do_sample=False, suppress_tokens=[ensemble.union.stop_id], **TRACED
    )
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + 60
    assert sum("outgrown the context" in record.message for record in caplog.records) == 1
    assert not out.member_logps[0, 0].isnan().any()
    assert out.member_logps[0, -1].isnan().tolist() == [False, True]
    last = out.logits[-1][0].log_softmax(-1)
    raw = b"Once upon a time" + b"".join(ensemble.union.pieces[i] for i in out.sequences[0, 16:-1].tolist())
    with torch.no_grad():
        own = members[0][0](torch.tensor([ensemble.engine.vocabularies[0].canonical_ids(raw)])).logits[0, -1]
    own[ensemble.engine.alignments[0].excluded_ids] = -torch.inf
    torch.testing.assert_close(last[:256].exp(), own.softmax(-1)[:256], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tokenizer", [unigram, wordpiece, characters])
def test_any_kind_of_tokenizer(tokenizer):
    """Members can have any lossless tokenizer."""
    ensemble = EnsembleForCausalLM.from_members(
        [member("llama", byte_level_bpe), member("gpt2", tokenizer, 3)], policy_of_text
    )
    inputs = encoded(ensemble, *TEXTS)
    out = ensemble.generate(
        **inputs, max_new_tokens=10, do_sample=False, suppress_tokens=[ensemble.union.stop_id], **TRACED
    )
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def test_recurrent_members_alone():
    """Two recurrent members with different tokenizers decode together."""
    members = [
        member(architecture, tokenizer, 3)
        for architecture, tokenizer in zip(RECURRENT, (raw_bytes, byte_level_bpe), strict=True)
    ]
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_text, span_length=2)
    inputs = encoded(ensemble, *TEXTS)
    out = ensemble.generate(
        **inputs, max_new_tokens=8, do_sample=False, suppress_tokens=[ensemble.union.stop_id], **TRACED
    )
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def test_rows_that_need_different_members():
    """Each row has its own weights at every token, with a policy that observes all members."""

    def policy(state):
        assert state.top_logps.shape == (3, 2)
        first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        return first.roll(int(state.span_index[0]), 0)

    ensemble = EnsembleForCausalLM.from_members([member(), member("gpt2", raw_bytes, 1)], policy, span_length=1)
    inputs = encoded(ensemble, *TEXTS)
    options = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "suppress_tokens": [ensemble.union.stop_id]}
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, **options, **TRACED)
    assert_close(forced(ensemble, inputs, out.sequences), stepped(out))


def test_a_quantised_member():
    """A member with int8 weights can be used; alone, its outputs do not change."""
    quantization = pytest.importorskip("torch.ao.quantization")
    model, tokenizer = pair("gpt2", 1, raw_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = quantization.quantize_dynamic(pair("llama")[0], {torch.nn.Linear}, dtype=torch.qint8)
    own = byte_level_bpe()(TEXTS[0], return_tensors="pt")["input_ids"]
    expected = quantised.generate(own, max_new_tokens=8, do_sample=False)
    alone = EnsembleForCausalLM.from_members([(quantised, byte_level_bpe())])
    assert torch.equal(alone.generate(own, max_new_tokens=8, do_sample=False), expected)
    ensemble = EnsembleForCausalLM.from_members([(quantised, byte_level_bpe()), (model, tokenizer)])
    out = ensemble.generate(**encoded(ensemble, TEXTS[0]), max_new_tokens=8, do_sample=False, **TRACED)
    probs = stepped(out).softmax(-1)
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]), atol=1e-6, rtol=0)


def test_a_member_in_training_mode():
    """A model in training mode with dropout is probed without dropout, and stays in training mode."""
    model, tokenizer = pair("gpt2", 1, raw_bytes())
    model.train()
    EnsembleForCausalLM.from_members([pair("llama"), (model, tokenizer)])
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("adapter", ["one", "two"])
def test_adapters_and_another_tokenizer(adapter):
    """Two adapters of one base model and a member with another tokenizer: each member uses its own adapter."""
    model, tokenizer = with_adapters(pair("llama")[0]), byte_level_bpe()
    names = ["one", "two"]
    ensemble = EnsembleForCausalLM.from_members(
        [(model, tokenizer), (model, tokenizer), member("gpt2", raw_bytes, 1)],
        StaticPolicy([float(adapter == name) for name in names] + [0.0]),
        adapter_names=[*names, None],
    )
    got = ensemble.generate(**encoded(ensemble, TEXTS[0]), max_new_tokens=10, do_sample=False)
    model.set_adapter(adapter)
    own = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    expected = model.generate(input_ids=own, max_new_tokens=10, do_sample=False)
    raw = b"".join(ensemble.union.pieces[i] or b"" for i in got[0, own.shape[1] :].tolist())
    assert raw == own_bytes(ensemble, 0, expected[0, own.shape[1] :].tolist())
