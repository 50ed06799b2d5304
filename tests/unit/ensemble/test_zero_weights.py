"""A member with weight 0 does not run in that span, reads the missed text in one chunk, and changes nothing."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae import StaticPolicy
from hf_rlae.policies.weights import cut
from tests.support.ensembles import TEXTS, Schedule, columns_read, encode, endless, mixture, own_logits
from tests.support.models import ARCHITECTURES, RECURRENT, pair
from tests.support.rlae import members as rlae_members
from tests.support.tiers import slow

TRACED = {"return_dict_in_generate": True, "output_logits": True}


@cache
def member(architecture, seed=0):
    return pair(architecture, seed)


def expected_logits(ensemble, out, inputs, row, mixing="linear"):
    """The formula with the weights of the trace, from full texts: the result if no member is skipped."""
    width = inputs["input_ids"].shape[1]
    padding = int((inputs["attention_mask"][row] == 0).sum())
    ids = out.sequences[row, padding:]
    steps = out.sequences.shape[1] - width
    start = width - padding
    own = [own_logits(member.model, ids)[start - 1 : start - 1 + steps] for member in ensemble.members]
    spans = torch.arange(steps) // ensemble.config.span_length
    return mixture(own, out.span_weights[row, spans], mixing)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_skipped_member_catches_up(architecture):
    """Law: skipping a member and letting it catch up = running it in every step, for every architecture."""
    policy = Schedule([1, 0], [0.5, 0.5], [1, 0], [1, 0], [0, 1])
    ensemble = endless([member("llama", 7), member(architecture)], policy, span_length=3)
    inputs = encode(TEXTS[0])
    out = ensemble.generate(**inputs, max_new_tokens=18, do_sample=False, **TRACED)
    expected = expected_logits(ensemble, out, inputs, 0)
    # with all weight on one member the logits have its own scale: compare distributions
    got = torch.cat(out.logits).double()
    torch.testing.assert_close(got.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)


def test_a_skipped_member_is_not_run():
    """Law: weight 0 in a span means no forward pass in that span, and one chunk when the member is needed again."""
    ensemble = endless([member("llama", 0), member("llama", 1)], Schedule([1, 0], [0, 1], [0.5, 0.5]), span_length=4)
    inputs = encode(*TEXTS)
    width = inputs["input_ids"].shape[1]
    with columns_read(*(entry.model for entry in ensemble.members)) as (first, second):
        ensemble.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert first == [width, 1, 1, 1] + [5, 1, 1, 1] + [1, 1, 1, 1]
    assert second == [width + 4, 1, 1, 1] + [1, 1, 1, 1]


def test_a_member_that_is_never_needed():
    """A member without any weight never runs; the logits are those of the other member, bit-exactly."""
    ensemble = endless([member("llama", 0), member("gpt2", 1)], StaticPolicy([1, 0]))
    inputs = encode(*TEXTS)
    with columns_read(ensemble.members[1].model) as (calls,):
        out = ensemble.generate(**inputs, max_new_tokens=6, do_sample=False, **TRACED)
    assert calls == []
    alone = endless([member("llama", 0)]).generate(**inputs, max_new_tokens=6, do_sample=False, **TRACED)
    assert torch.equal(out.sequences, alone.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, alone.logits, strict=True))
    assert out.member_logps[..., 1].isnan().all()
    assert not out.member_logps[..., 0].isnan().any()


@settings(max_examples=15)
@given(
    table=st.lists(
        st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=3, max_size=3).filter(any), min_size=1, max_size=4
    ),
    span_length=st.integers(1, 5),
    mixing=st.sampled_from(["linear", "log", "power"]),
    use_cache=st.booleans(),
)
def test_any_schedule(table, span_length, mixing, use_cache):
    """Law: for any skipped members, the result equals the formula with the weights of the trace."""
    policy = Schedule(*([w / sum(row) for w in row] for row in table))
    members = [member("llama", 0), member("gemma3", 1), member("gpt2", 2)]
    ensemble = endless(members, policy, span_length=span_length, mixing=mixing)
    inputs = encode(*TEXTS)
    out = ensemble.generate(**inputs, max_new_tokens=9, do_sample=False, use_cache=use_cache, **TRACED)
    for row in range(3):
        expected = expected_logits(ensemble, out, inputs, row, mixing)
        got = torch.stack([entry[row] for entry in out.logits]).double()
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    weights = out.span_weights[:, torch.arange(9) // span_length]
    needed = (weights > 0).any(0)
    assert torch.equal(out.member_logps.isnan().all(0), ~needed)


def by_row(*rows):
    """A policy that gives row `i` the `i`-th weights in even spans, and the reverse of them in odd ones."""

    def policy(state):
        weights = torch.tensor(rows, dtype=torch.float32)
        return weights if int(state.span_index[0]) % 2 == 0 else weights.flip(1)

    return policy


def test_rows_that_need_different_members():
    """Law: each row has its own weights, even if a member has weight in another row only."""
    members = [member("llama", 0), member("qwen2", 1), member("mistral", 2)]
    policy = by_row([1, 0, 0], [0, 0.5, 0.5], [0.3, 0.7, 0])
    ensemble = endless(members, policy, span_length=2)
    inputs = encode(*TEXTS)
    out = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False, **TRACED)
    for row in range(3):
        expected = expected_logits(ensemble, out, inputs, row)
        got = torch.stack([entry[row] for entry in out.logits]).double()
        torch.testing.assert_close(got.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("architecture", ["llama", "mistral", *RECURRENT])
def test_skipping_is_invisible_to_beams(architecture, num_beams):
    """Law: beam search reorders a member with unread text like the others."""
    policy = Schedule([1, 0], [0.4, 0.6])
    skipping = endless([member("llama", 7), member(architecture)], policy, span_length=2)

    class Watched(Schedule):
        """Observes the members, so that all of them run at every span."""

        def __call__(self, state):
            assert len(state.observations) == 2
            return super().__call__(state)

    running = endless([member("llama", 7), member(architecture)], Watched([1, 0], [0.4, 0.6]), span_length=2)
    options = {"max_new_tokens": 10, "num_beams": num_beams, "do_sample": False, **TRACED}
    got, expected = (entry.generate(**encode(TEXTS[0]), **options) for entry in (skipping, running))
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt_length", [2, 14])
@pytest.mark.parametrize("architecture", ["mistral", "rwkv", *slow("llama")])
def test_proposals_while_a_member_lags_behind(architecture, prompt_length):
    """Law: rejecting proposed tokens does not change a member that has not read them."""
    policy = Schedule([0.5, 0.5], *[[1, 0]] * 7, [0.5, 0.5])
    ensemble = endless([member("llama", 0), member(architecture, 1)], policy, span_length=2)
    assistant, _ = pair("llama", 5)
    assistant.generation_config.update(
        num_assistant_tokens=5, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0
    )
    ids = torch.arange(3, 3 + prompt_length)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": 20, "do_sample": False, **TRACED}
    plain = ensemble.generate(**inputs, **options)
    assisted = ensemble.generate(**inputs, **options, assistant_model=assistant)
    assert torch.equal(assisted.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(assisted.logits), torch.stack(plain.logits), atol=1e-4, rtol=0)


# Cutting small weights


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"min_weight": 0.1}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
        ({"min_weight": 0.3}, [0.625, 0.375, 0.0, 0.0]),
        ({"min_weight": 0.9}, [1.0, 0.0, 0.0, 0.0]),
        ({"max_active_members": 3}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
        ({"max_active_members": 1}, [1.0, 0.0, 0.0, 0.0]),
        ({"max_active_members": 4}, [0.5, 0.3, 0.15, 0.05]),
        ({"max_active_members": 3, "min_weight": 0.2}, [0.625, 0.375, 0.0, 0.0]),
    ],
)
def test_small_weights_are_cut(options, expected):
    """`min_weight` and `max_active_members` set small weights to 0 and renormalise; weight 0 means no forward pass."""
    members = [member("llama", seed) for seed in range(4)]
    ensemble = endless(members, StaticPolicy([0.5, 0.3, 0.15, 0.05]), **options)
    inputs = encode(TEXTS[0])
    with columns_read(*(model for model, _ in members)) as calls:
        out = ensemble.generate(**inputs, max_new_tokens=4, do_sample=False, **TRACED)
    torch.testing.assert_close(out.span_weights[0, 0], torch.tensor(expected))
    assert [len(seen) for seen in calls] == [4 if weight else 0 for weight in expected]
    got = torch.cat(out.logits).double().log_softmax(-1)
    torch.testing.assert_close(got, expected_logits(ensemble, out, inputs, 0).log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_equal_weights_are_no_more_than_the_limit(count, limit):
    """Of equal weights the first ones are kept."""
    kept = cut(torch.full((2, count), 1 / count), 0.0, limit)
    active = min(count, limit)
    assert torch.equal(kept, torch.tensor([[1 / active] * active + [0.0] * (count - active)] * 2))


@pytest.mark.parametrize("kind", ["shared", "different"])
def test_member_logps_are_nan_without_weight(kind):
    """`member_logps` is NaN without weight, even if the member runs for another row: its readings may be outdated."""
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    ensemble = endless(rlae_members(kind), lambda state: rows[: state.batch_size], span_length=1)
    both = ensemble.generate(**encode(*TEXTS[:2]), max_new_tokens=4, do_sample=False, **TRACED)
    alone = ensemble.generate(**encode(TEXTS[0]), max_new_tokens=4, do_sample=False, **TRACED)
    assert both.member_logps[0, :, 1].isnan().all()
    assert not both.member_logps[1].isnan().any()
    torch.testing.assert_close(both.member_logps[:1], alone.member_logps, atol=1e-5, rtol=0, equal_nan=True)


@settings(max_examples=20)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any), min_size=1, max_size=3),
    min_weight=st.sampled_from([0.0, 0.2, 0.5, 0.99]),
    most=st.sampled_from([None, 1, 2, 3]),
)
def test_what_cutting_keeps(rows, min_weight, most):
    """Law: rows sum to 1, the largest weight is kept, and kept weights keep their ratios, with ties."""
    given = torch.tensor(rows, dtype=torch.float32)
    given = given / given.sum(1, keepdim=True)
    ensemble = endless([member("llama", 0)] * 3, lambda state: given, min_weight=min_weight, max_active_members=most)
    ids = torch.full((len(rows), 2), 5)
    out = ensemble.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, **TRACED)
    weights = out.span_weights[:, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(len(rows)))
    assert ((weights > 0).sum(1) <= (most or 3)).all()
    for before, after in zip(given, weights, strict=True):
        assert after[before.argmax()] > 0
        kept = after > 0
        assert (before[kept] >= min(min_weight, float(before.max()))).all()
        torch.testing.assert_close(after[kept], before[kept] / before[kept].sum())
