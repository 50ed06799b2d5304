"""Weights hold for a span: when the policy is called, on which text, and what the trace has."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae import StaticPolicy
from hf_rlae.ensemble.spans import SpanWeights
from tests.support.ensembles import (
    TEXTS,
    Recorder,
    Schedule,
    encode,
    endless,
    mixture,
    own_logits,
    policy_of_text,
    weights_of_text,
)
from tests.support.models import WINDOW, pair, pairs

TRACED = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


@cache
def members():
    return pairs(["llama", "gpt2", "mistral"])


def text_before(ensemble, ids, prompt_mask, column):
    """The text of one row up to a column, as a policy should observe it."""
    kept = [i for at, i in enumerate(ids[:column].tolist()) if at >= len(prompt_mask) or prompt_mask[at]]
    return ensemble.tokenizer.decode(kept, skip_special_tokens=True)


def completion_logits(row, prompt_mask, steps, among=None):
    """Each member's own logits `(steps, V)` for the completion of one row, by teacher forcing."""
    padding = int((prompt_mask == 0).sum())
    start = len(prompt_mask) - padding
    return [own_logits(model, row[padding:])[start - 1 : start - 1 + steps] for model, _ in among or members()]


@settings(max_examples=12)
@given(span_length=st.integers(1, 12), steps=st.integers(1, 13), rows=st.integers(1, 3), sample=st.booleans())
def test_the_policy_is_asked_once_per_span_about_the_newest_text(span_length, steps, rows, sample):
    """Law: one call per span for all rows, the first span included, on the text that ends where the span begins."""
    recorder = Recorder()
    ensemble = endless(members(), recorder, span_length=span_length)
    inputs = encode(*TEXTS[:rows])
    width = inputs["input_ids"].shape[1]
    out = ensemble.generate(**inputs, max_new_tokens=steps, do_sample=sample)
    assert len(recorder.asked) == math.ceil(steps / span_length)
    for span, asked in enumerate(recorder.asked):
        expected = [
            (span, text_before(ensemble, out[row], inputs["attention_mask"][row], width + span * span_length))
            for row in range(rows)
        ]
        assert asked == expected


@settings(max_examples=8)
@given(span_length=st.integers(1, 10), mixing=st.sampled_from(["linear", "log", "power"]), use_cache=st.booleans())
def test_weights_hold_for_a_span(span_length, mixing, use_cache):
    """Law: every token of span s comes from the mixture with the weights that were given for span s."""
    ensemble = endless(members(), policy_of_text, span_length=span_length, mixing=mixing)
    inputs = encode(*TEXTS)
    out = ensemble.generate(**inputs, max_new_tokens=9, do_sample=False, use_cache=use_cache, **TRACED)
    spans = torch.arange(9) // span_length
    width = inputs["input_ids"].shape[1]
    for row, mask in enumerate(inputs["attention_mask"]):
        weights = torch.stack(
            [
                weights_of_text(text_before(ensemble, out.sequences[row], mask, width + int(span) * span_length), 3)
                for span in spans
            ]
        )
        expected = mixture(completion_logits(out.sequences[row], mask, 9), weights, mixing)
        got = torch.stack([entry[row] for entry in out.logits]).double()
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("span_length", [1, 3, 4, 20])
@pytest.mark.parametrize("mode", [{"do_sample": False}, {"do_sample": True, "num_return_sequences": 2}])
def test_trace(mode, span_length):
    """The trace has the weights, the starts of spans, and each member's log-probability of every token."""
    ensemble = endless(members(), policy_of_text, span_length=span_length)
    inputs = encode(*TEXTS)
    out = ensemble.generate(**inputs, max_new_tokens=8, **mode, **TRACED)
    rows, spans = len(out.sequences), math.ceil(8 / span_length)
    width = inputs["input_ids"].shape[1]
    assert out.span_weights.shape == (rows, spans, 3)
    assert out.span_starts.tolist() == list(range(0, 8, span_length))
    assert out.member_logps.shape == (rows, 8, 3)
    for row in range(rows):
        mask = inputs["attention_mask"][row * 3 // rows]
        for span, at in enumerate(out.span_starts.tolist()):
            text = text_before(ensemble, out.sequences[row], mask, width + at)
            torch.testing.assert_close(out.span_weights[row, span], weights_of_text(text, 3))
        tokens = out.sequences[row, width:]
        for index, own in enumerate(completion_logits(out.sequences[row], mask, 8)):
            expected = own.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(
                out.member_logps[row, :, index].double(),
                expected,
                atol=1e-4,
                rtol=0,
                msg=f"row {row}, member {index}",
            )


def test_no_trace_unless_it_is_asked_for():
    """A plain `generate` returns ids, and nothing is recorded."""
    ensemble = endless(members(), policy_of_text)
    cache_of_call = ensemble.new_cache()
    out = ensemble.generate(**encode(TEXTS[0]), max_new_tokens=4, past_key_values=cache_of_call)
    assert isinstance(out, torch.Tensor)
    assert cache_of_call.trace.member_logps == []


BEAMS = {
    "all": {"num_beams": 4, "num_return_sequences": 4},
    "sampled": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True, "top_k": 0},
    "no_cache": {"num_beams": 4, "num_return_sequences": 2, "use_cache": False},
    "ending": {"num_beams": 4, "num_return_sequences": 3, "eos_token_id": list(range(0, 330, 3))},
    "early": {
        "num_beams": 3,
        "num_return_sequences": 3,
        "eos_token_id": list(range(0, 330, 4)),
        "early_stopping": True,
    },
}


def beams_of(name, span_length):
    torch.manual_seed(0)
    ensemble = endless(members(), policy_of_text, span_length=span_length)
    inputs = encode(*TEXTS)
    settings = {"do_sample": False, "length_penalty": 0.0, "pad_token_id": 0, **BEAMS[name]}
    out = ensemble.generate(**inputs, max_new_tokens=10, **settings, **TRACED)
    width = inputs["input_ids"].shape[1]
    for row in range(len(out.sequences)):
        mask = inputs["attention_mask"][row // BEAMS[name]["num_return_sequences"]]
        steps = int((out.beam_indices[row] >= 0).sum())
        yield ensemble, out, row, mask, steps, out.sequences[row, : width + steps], width


@pytest.mark.parametrize("span_length", [1, 3, 4])
@pytest.mark.parametrize("name", BEAMS)
def test_weights_follow_the_beams(name, span_length):
    """Law: recomputing a returned beam with the weights of its own text gives the beam's score."""
    lengths = set()
    for ensemble, out, row, mask, steps, ids, width in beams_of(name, span_length):
        spans = (torch.arange(steps) // span_length).tolist()
        for span in set(spans):
            text = text_before(ensemble, ids, mask, width + span * span_length)
            torch.testing.assert_close(out.span_weights[row, span], weights_of_text(text, 3), msg=f"row {row}, {span}")
        mixed = mixture(completion_logits(ids, mask, steps), out.span_weights[row, spans])
        logps = mixed.log_softmax(-1).gather(-1, ids[width:, None])[:, 0]
        assert float(out.sequences_scores[row]) == pytest.approx(float(logps.sum()), abs=1e-4)
        lengths.add(steps)
    assert (len(lengths) > 1) == (name in ("ending", "early"))


@pytest.mark.parametrize("name", BEAMS)
def test_member_logps_follow_the_beams(name):
    """Law: `member_logps` of a beam has each member's log-probabilities of the beam's own tokens, with the last one."""
    for _ensemble, out, row, mask, steps, ids, width in beams_of(name, 3):
        for index, own in enumerate(completion_logits(ids, mask, steps)):
            expected = own.log_softmax(-1).gather(-1, ids[width:, None])[:, 0]
            torch.testing.assert_close(
                out.member_logps[row, :steps, index].double(), expected, atol=1e-4, rtol=0, msg=f"row {row}"
            )


@pytest.mark.parametrize("name", ["ending", "early"])
def test_nothing_is_said_after_the_end_of_a_beam(name):
    """After a beam's last token no member runs for it: `member_logps` is NaN there."""
    ended = 0
    for _ensemble, out, row, _mask, steps, _ids, _width in beams_of(name, 3):
        assert out.member_logps[row, steps:].isnan().all(), f"row {row}"
        ended += out.member_logps.shape[1] > steps
    assert ended


@pytest.mark.parametrize("span_length", [1, 3])
@pytest.mark.parametrize(
    "policy",
    [policy_of_text, Schedule([1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]), StaticPolicy([0.2, 0.3, 0.5])],
    ids=["text", "schedule", "static"],
)
def test_proposed_tokens_that_are_taken_back(policy, span_length):
    """Law: prompt lookup generates the greedy text; rejected tokens do not change the weights."""
    ensemble = endless(members(), policy, span_length=span_length)
    inputs = encode("a a a a a a a a")
    options = {"max_new_tokens": 14, "do_sample": False, **TRACED}
    plain = ensemble.generate(**inputs, **options)
    looked_up = ensemble.generate(**inputs, **options, prompt_lookup_num_tokens=5, max_matching_ngram_size=1)
    assert torch.equal(plain.sequences, looked_up.sequences)
    torch.testing.assert_close(looked_up.span_weights, plain.span_weights)
    run = ~plain.member_logps.isnan()
    torch.testing.assert_close(looked_up.member_logps[run], plain.member_logps[run], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [0, 9], ids=["often_right", "always_wrong"])
def test_assistants(seed):
    """Law: an assistant changes no token, whether all or none of its tokens are accepted, past a sliding window."""
    ensemble = endless(members(), StaticPolicy([0.8, 0.1, 0.1]), span_length=3)
    assistant = pair("llama", seed)[0]
    assistant.generation_config.update(
        num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0
    )
    inputs = encode(TEXTS[0])
    plain = ensemble.generate(**inputs, max_new_tokens=2 * WINDOW, do_sample=False)
    assisted = ensemble.generate(**inputs, max_new_tokens=2 * WINDOW, do_sample=False, assistant_model=assistant)
    assert torch.equal(plain, assisted)


def test_rows_that_have_ended():
    """The policy still gets a row that has ended, with its own text, and the other rows keep their weights."""
    recorder = Recorder()
    ensemble = endless(members(), recorder, span_length=2)
    inputs = encode(*TEXTS)
    free = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False)
    width = inputs["input_ids"].shape[1]
    end = int(free[1, width + 2])
    recorder.asked.clear()
    out = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0)
    for row in (0, 2):
        stop = free[row, width:].tolist().index(end) + 1 if end in free[row, width:] else 8
        assert out[row, width : width + stop].tolist() == free[row, width : width + stop].tolist()
    assert recorder.asked[-1][1][1] == ensemble.tokenizer.decode(
        out[1, width - int(inputs["attention_mask"][1].sum()) : width + 3].tolist(), skip_special_tokens=True
    )


def test_reordering_keeps_the_spans_of_rows_that_lag_behind():
    """Rows whose completions begin in different columns keep their weights when rows are selected."""
    starts = torch.tensor([1, 9])
    spans = SpanWeights(4, starts, torch.tensor([0, 0]))
    for column in range(16):
        for query in spans.queries(column, column + 1):
            weights = torch.tensor([[0.1, 0.9], [0.3, 0.7]])
            spans.set(query, weights if query.rows is None else weights[query.rows])
    spans.select(torch.tensor([1, 0]))
    assert spans.as_lists(15) == [pytest.approx([0.3, 0.7]), pytest.approx([0.1, 0.9])]


def spans_of(starts, firsts, span_length=4, members=2):
    """Spans with recognisable weights: span `s` gives `1 / (s + 2)` to the first member."""
    spans = SpanWeights(span_length, torch.tensor(starts), torch.tensor(firsts))

    def answer(low, high):
        for query in spans.queries(low, high):
            rows = len(starts) if query.rows is None else len(query.rows)
            first = torch.full((rows, 1), 1 / (query.span + 2))
            spans.set(query, torch.cat([first, 1 - first], dim=1))

    return spans, answer


def test_selecting_rows_keeps_the_span_that_ends_and_the_one_that_begins():
    """Law: after rows are selected, the weights of the newest column are known, and so are those of the column before.

    A step that begins a span still needs the shares of the token before it, which has the weights of the span before.
    """
    spans, answer = spans_of([3, 3], [0, 0])
    answer(2, 12)
    assert spans.as_lists(10)[0] == pytest.approx([1 / 4, 3 / 4])  # span 2
    assert spans.as_lists(9)[0] == pytest.approx([1 / 3, 2 / 3])  # span 1
    spans.select(torch.tensor([1, 1, 0]))
    assert spans.as_lists(10) == [pytest.approx([1 / 4, 3 / 4])] * 3
    assert spans.as_lists(9) == [pytest.approx([1 / 3, 2 / 3])] * 3
    torch.testing.assert_close(spans.weights(9, 11)[2], torch.tensor([[1 / 3, 2 / 3], [1 / 4, 3 / 4]]))


@pytest.mark.parametrize(("starts", "firsts"), [([9, 9], [0, 2]), ([9, 5], [0, 2])], ids=["alike", "ragged"])
def test_tokens_of_the_prompt_have_the_weights_of_the_first_span(starts, firsts):
    """Law: columns inside a prompt have the weights of the first span."""
    spans, answer = spans_of(starts, firsts)
    answer(0, 9)
    assert spans.span_of(0).tolist() == [0, 0]
    assert spans.span_of(2).tolist() == [0, 0]
    for column in range(min(starts) - 1):
        assert spans.as_lists(column) == [pytest.approx([1 / 2, 1 / 2])] * 2
        torch.testing.assert_close(spans.weights(column, column + 1)[:, 0], torch.full((2, 2), 0.5))


def test_members_with_weight_in_other_rows_only_are_not_active():
    """Law: once a row is dropped, so is the need to run the members that had weight in it alone."""
    spans = SpanWeights(4, torch.tensor([2, 2]), torch.tensor([0, 0]))
    (query,) = spans.queries(1, 2)
    spans.set(query, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]))
    assert spans.active(1, 2) == [0, 1, 2]
    spans.select(torch.tensor([1]))
    assert spans.active(1, 2) == [1, 2]
    spans.select(torch.tensor([0, 0]))
    assert spans.active(1, 2) == [1, 2]
