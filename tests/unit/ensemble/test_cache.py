"""The cache owns everything of a call, and what it owns ends with the call."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.ensemble.draws import MemberDraws
from hf_rlae.ensemble.spans import SpanWeights
from hf_rlae.errors import InputError
from tests.support.ensembles import TEXTS, encode, endless, policy_of_text
from tests.support.models import pair
from tests.support.tokenizers import raw_bytes

OPTIONS = {"max_new_tokens": 5, "do_sample": False}
MEMBERS = {
    "one_tokenizer": lambda: [pair("llama"), pair("gpt2", 1)],
    "two_tokenizers": lambda: [pair("llama"), pair("gpt2", 1, raw_bytes())],
}


@pytest.fixture(params=MEMBERS)
def ensemble(request) -> EnsembleForCausalLM:
    return endless(MEMBERS[request.param](), policy_of_text, span_length=2)


def own_prompts(ensemble: EnsembleForCausalLM, *texts: str) -> dict[str, torch.Tensor]:
    """A prompt of one column, and another one for each member: in its own ids."""
    rows = [member.tokenizer(text)["input_ids"] for member, text in zip(ensemble.members, texts, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[[0] * (width - len(row)) + row for row in rows]])
    mask = torch.tensor([[[0] * (width - len(row)) + [1] * len(row) for row in rows]])
    first = torch.tensor([rows[0]])
    return {"input_ids": first, "member_input_ids": ids, "member_attention_mask": mask}


def test_a_step_that_failed_can_be_made_again(ensemble):
    """Law: after an exception in the policy the same step gives what it gives without."""
    inputs, calls = encode(*TEXTS), []

    def policy(state):
        return policy_of_text(state) + 0.0 * state.entropies  # the members have been run

    with torch.no_grad():
        expected = ensemble(**inputs, prompt_length=4, past_key_values=ensemble.new_cache(policy=policy)).logits

    def fails_once(state):
        calls.append(state.entropies)
        if len(calls) == 3:
            raise ZeroDivisionError
        return policy(state)

    cache = ensemble.new_cache(policy=fails_once)
    with torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            ensemble(**inputs, prompt_length=4, past_key_values=cache)
        again = ensemble(**inputs, prompt_length=4, past_key_values=cache).logits
    torch.testing.assert_close(again, expected, equal_nan=True)


def test_forward_after_generate_is_an_ordinary_forward(ensemble):
    """Law: `generate` leaves the cache: later columns are checked, and their logits are the caller's."""
    cache = ensemble.new_cache()
    ids = encode(TEXTS[0])["input_ids"]
    out = ensemble.generate(ids, **OPTIONS, past_key_values=cache)
    with torch.no_grad():
        first = ensemble(input_ids=out[:, -1:], past_key_values=cache).logits
        kept = first.clone()
        ensemble(input_ids=out[:, -1:], past_key_values=cache)
    assert not first.is_inference()
    assert torch.equal(first, kept)
    with pytest.raises(InputError, match="outside the union vocabulary"):
        ensemble(input_ids=torch.tensor([[99999]]), past_key_values=cache)


def test_a_cache_that_was_reset_is_as_new(ensemble):
    """Law: also if the members had prompts of their own, and the new batch has another size."""
    cache = ensemble.new_cache()
    ensemble.generate(**own_prompts(ensemble, "the dogs", "a cat"), **OPTIONS, past_key_values=cache)
    cache.reset()
    for inputs in (own_prompts(ensemble, "Once upon", "a time"), encode(*TEXTS)):
        expected = ensemble.generate(**inputs, **OPTIONS)
        assert torch.equal(ensemble.generate(**inputs, **OPTIONS, past_key_values=cache), expected)
        cache.reset()


def test_all_members_score_the_same_text_in_the_second_turn_of_a_chat():
    """Law: a member's prompt of a later turn is its own first prompt and everything that was written since."""
    ensemble = endless(MEMBERS["one_tokenizer"]())
    cache = ensemble.new_cache()
    inputs = own_prompts(ensemble, "the dogs", "a cat and a dog")
    out = ensemble.generate(**inputs, **OPTIONS, past_key_values=cache)
    own = [
        tuple(member.tokenizer(text)["input_ids"])
        for member, text in zip(ensemble.members, ("the dogs", "a cat and a dog"), strict=True)
    ]
    lengths = []

    def watch(state):
        lengths.append([len(prompt) for prompt in cache.call.prompts(cache, 0)])
        return torch.full((state.batch_size, 2), 0.5)

    ensemble.set_policy(watch)
    watch.observes_members = False
    ensemble.generate(out, **OPTIONS, past_key_values=cache)
    assert lengths[0] == [len(prompt) + OPTIONS["max_new_tokens"] for prompt in own]


def test_prompts_that_were_refused_are_refused_again():
    """Law: a failed call leaves no spans behind, so that members' own prompts cannot get lost."""
    ensemble = endless(MEMBERS["one_tokenizer"]())
    inputs = encode(*TEXTS[:2])
    own = torch.randint(5, 90, (2, 2, 4))
    cache = ensemble.new_cache()
    for _ in range(2):
        with pytest.raises(InputError, match="same column"):
            ensemble(**inputs, prompt_length=torch.tensor([3, 4]), member_input_ids=own, past_key_values=cache)


def test_a_mask_of_new_columns_goes_behind_the_one_that_is_known(ensemble):
    """Law: `attention_mask` may cover the whole text or the new columns."""
    inputs = encode(*TEXTS)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert not bool(mask.all())
    found = []
    for rest in (mask, mask[:, -2:]):
        cache = ensemble.new_cache()
        with torch.no_grad():
            ensemble(input_ids=ids[:, :-2], attention_mask=mask[:, :-2], past_key_values=cache)
            found.append(ensemble(input_ids=ids[:, -2:], attention_mask=rest, past_key_values=cache).logits)
    torch.testing.assert_close(found[1], found[0])


def test_a_trace_is_that_of_its_call(ensemble):
    """Law: beams that were recorded before leave nothing in the trace of the next call."""
    cache = ensemble.new_cache(record=True)
    ids = encode(TEXTS[0])["input_ids"]
    traced = {"return_dict_in_generate": True, "past_key_values": cache}
    beams = ensemble.generate(ids, max_new_tokens=4, num_beams=2, **traced)
    cache.keep_rows(torch.tensor([0]))
    cache.reset()
    found = ensemble.generate(beams.sequences, **OPTIONS, **traced)
    expected = ensemble.generate(beams.sequences, **OPTIONS, return_dict_in_generate=True)
    torch.testing.assert_close(found.member_logps, expected.member_logps)
    assert not bool(found.member_logps.isnan().any())


def test_a_policy_that_is_set_during_a_call_is_that_of_the_next_one(ensemble):
    """Law: a call asks the policy that the ensemble had when it began."""
    inputs, traced = encode(*TEXTS), {**OPTIONS, "return_dict_in_generate": True}
    expected = ensemble.generate(**inputs, **traced)

    def criterion(input_ids, scores, **kwargs):
        ensemble.set_policy(StaticPolicy([0.0, 1.0]))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    found = ensemble.generate(**inputs, **traced, stopping_criteria=[criterion])
    assert torch.equal(found.span_weights, expected.span_weights)
    after = ensemble.generate(**inputs, **traced)
    assert after.span_weights[..., 1].eq(1).all()


@pytest.mark.parametrize("scope", ["row", "batch"])
def test_a_draw_that_is_made_again_keeps_the_rows_that_were_good(scope):
    """Law: if one row's member cannot continue, only that row is drawn again."""
    for seed in range(20):
        torch.manual_seed(seed)
        draws, spans = MemberDraws("token", scope), SpanWeights(4, torch.tensor([1] * 6), torch.tensor([0] * 6))
        (query,) = spans.queries(0, 1)
        spans.set(query, torch.full((6, 3), 1 / 3))
        ids = torch.zeros(6, 1, dtype=torch.long)
        draws.choose(spans, ids, 0)
        before = draws.drawn[-1][1].tolist()
        draws.choose(spans, ids, 0, [[before[0]], [], [], [], [], []])
        after = draws.drawn[-1][1].tolist()
        assert after[0] != before[0]
        assert after[1:] == before[1:]
