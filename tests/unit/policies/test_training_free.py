"""Policies without training: perplexity of the prompt, and entropy."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import processors

from hf_rlae import EnsembleForCausalLM, EntropyPolicy, PerplexityPolicy, StaticPolicy
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member, prompt_logps
from hf_rlae.policies import policies
from tests.support.ensembles import TEXTS, encode, endless, own_logits
from tests.support.models import constant, pair, pairs
from tests.support.policies import random_state, scored
from tests.support.tokenizers import byte_level_bpe, characters, raw_bytes, sentencepiece_bpe


class Keep:
    """A policy that records its states and calls another policy."""

    observes_members = True

    def __init__(self, policy):
        self.policy = policy
        self.states = []

    def __call__(self, state):
        self.states.append((state.prompt_scores, state.prompt_perplexities, state.agreement))
        return self.policy(state)


def test_entropy():
    """The formula of `EntropyPolicy`."""
    state = random_state()
    for temperature in (0.1, 1.0, 4.0):
        expected = (-state.entropies / temperature).softmax(1)
        assert torch.equal(EntropyPolicy(temperature)(state), expected)
    assert EntropyPolicy(1e-4)(state).argmax(1).tolist() == state.entropies.argmin(1).tolist()


def test_the_more_confident_member_has_more_weight():
    """The same with different tokenizers: an uncertain member has almost no weight beside a confident one."""
    sure = torch.zeros(len(byte_level_bpe()))
    sure[40] = 12.0
    ensemble = endless(
        [constant(torch.zeros(len(raw_bytes())), raw_bytes()), constant(sure)], EntropyPolicy(0.5), span_length=3
    )
    inputs = ensemble.tokenizer(["ab", "c"], return_tensors="pt", padding=True)
    out = ensemble.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert bool((out.span_weights[..., 1] > 0.99).all())


def test_perplexity_of_one_tokenizer():
    """PackLLM-sim: the softmax of minus the mean loss per token, each row by its own prompt."""
    members = pairs(["llama", "gpt2", "mamba"])
    for temperature in (1.0, 0.3):
        ensemble = endless(members, PerplexityPolicy(temperature), span_length=2)
        inputs = encode(*TEXTS)
        out = ensemble.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            ids = inputs["input_ids"][row][mask]
            losses = torch.stack(
                [torch.nn.functional.cross_entropy(own_logits(model, ids)[:-1], ids[1:]) for model, _ in members]
            )
            expected = (-losses / temperature).softmax(0)
            for span in range(3):
                torch.testing.assert_close(out.span_weights[row, span].double(), expected, atol=1e-4, rtol=0)


def scores_by_hand(model, tokenizer, text, skip_first):
    """Log-probability, bytes and tokens of the text of one prompt."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    logps = own_logits(model, ids).log_softmax(-1)
    special = set(tokenizer.all_special_ids)
    text_places = [at for at, i in enumerate(ids.tolist()) if i not in special]
    places = text_places[1:] if skip_first else text_places
    total = sum(float(logps[at - 1, ids[at]]) for at in places)
    before = tokenizer.decode(ids[: places[0]], skip_special_tokens=True)
    return total, len(text.encode()) - len(before.encode()), len(places)


def test_perplexity_of_different_tokenizers():
    """Bytes and log-probabilities of the tokens that each member can score; the order of members changes nothing."""
    members = [pair("llama"), pair("gpt2", 1, raw_bytes()), pair("mistral", 2, characters())]
    text = "She said, they walked"
    by_hand = [scores_by_hand(model, tokenizer, text, True) for model, tokenizer in members]
    policy = Keep(PerplexityPolicy())
    ensemble = endless(members, policy, span_length=2)
    inputs = ensemble.tokenizer([text], return_tensors="pt")
    out = ensemble.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    scores, perplexities, agreement = policy.states[0]
    for index, (logp, num_bytes, num_tokens) in enumerate(by_hand):
        assert scores.logps[0, index].item() == pytest.approx(logp, abs=1e-3)
        assert (scores.num_bytes[0, index], scores.num_tokens[0, index]) == (num_bytes, num_tokens)
        assert perplexities[0, index].item() == pytest.approx(math.exp(-logp / num_bytes), rel=1e-4)
    per_token = sum(n / t for _, n, t in by_hand) / 3
    expected = torch.tensor([logp / n * per_token for logp, n, _ in by_hand]).softmax(0)
    torch.testing.assert_close(out.span_weights[0, 0], expected, atol=1e-4, rtol=0)
    assert torch.equal(out.span_weights[0, 0], out.span_weights[0, 1])
    assert agreement.shape == (1, 3, 3)
    turned = endless([members[i] for i in (2, 0, 1)], PerplexityPolicy())
    out = turned.generate(
        **turned.tokenizer([text], return_tensors="pt"), max_new_tokens=1, return_dict_in_generate=True
    )
    torch.testing.assert_close(out.span_weights[0, 0], expected[[2, 0, 1]], atol=1e-4, rtol=0)


def test_a_beginning_of_text_token_lets_the_first_token_count():
    """If every member has a beginning-of-text token, all text is scored; else no member scores its first token."""
    tokenizer = sentencepiece_bpe()
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    try:
        text = "Once upon a time"
        members = [pair("llama", 0, tokenizer), pair("gpt2", 1, tokenizer)]
        policy = Keep(StaticPolicy([0.5, 0.5]))
        ensemble = endless(members, policy)
        ensemble.generate(**ensemble.tokenizer([text], return_tensors="pt"), max_new_tokens=1)
        mixed = Keep(StaticPolicy([0.5, 0.5]))
        ensemble = endless([members[0], pair("llama", 3)], mixed)
        ensemble.generate(**ensemble.tokenizer([text], return_tensors="pt"), max_new_tokens=1)
        logp, _, num_tokens = scores_by_hand(*members[0], text, False)
        later, _, _ = scores_by_hand(*members[0], text, True)
    finally:
        backend.post_processor = before
    assert policy.states[0][0].num_tokens.tolist() == [[num_tokens] * 2]
    assert policy.states[0][0].logps[0, 0].item() == pytest.approx(logp, abs=1e-3)
    assert mixed.states[0][0].num_tokens[0, 0] == num_tokens - 1
    assert mixed.states[0][0].logps[0, 0].item() == pytest.approx(later, abs=1e-3)


def test_prompts_are_read_once_a_call():
    """For any number of spans, beams and equal rows, each prompt is read once by `generate` and once by the policy."""
    model, tokenizer = pair("llama")
    widths = []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True)
    ensemble = endless([(model, tokenizer), pair("gpt2", 1)], PerplexityPolicy(), span_length=2)
    inputs = encode(TEXTS[0], TEXTS[0])
    ensemble.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert [shape for shape in widths if shape[0] == 1] == [(1, length)] * 2
    widths.clear()
    ensemble.generate(**encode(*TEXTS), max_new_tokens=6, do_sample=False)
    lengths = sorted(int(n) for n in encode(*TEXTS)["attention_mask"].sum(1))
    assert sorted(shape[1] for shape in widths if shape[0] == 1) == lengths


@pytest.mark.parametrize("others", [[], [raw_bytes()]], ids=["same", "different"])
def test_prompts_without_perplexity(others):
    """A prompt of one token gives equal weights."""
    members = [pair("llama"), pair("gpt2", 1, *others)]
    policy = Keep(PerplexityPolicy())
    ensemble = endless(members, policy)
    out = ensemble.generate(torch.tensor([[70]]), max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    torch.testing.assert_close(out.span_weights[0, 0], torch.full((2,), 0.5))
    assert policy.states[0][1].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("architecture", ["gpt2", "mamba", "mistral"])
def test_log_probabilities_of_prompts(architecture):
    """Prompts of any lengths are scored as if alone; of a prompt that is too long, the end is read."""
    limits = {} if architecture == "mamba" else {"max_position_embeddings": 8}
    member = Member(*pair(architecture, **limits))
    prompts = [(5, 6, 7), (9,), (), (8, 9, 10), tuple(range(20, 31)), (5, 6, 7)]
    found = prompt_logps(member, prompts)
    assert [len(row) for row in found] == [2, 0, 0, 2, 10, 2]
    for prompt, row in zip(prompts, found, strict=True):
        read = torch.tensor(prompt if member.context_length is None else prompt[-8:])
        unread = len(prompt) - len(read)
        assert all(math.isnan(number) for number in row[:unread])
        if len(read) > 1:
            expected = own_logits(member.model, read).log_softmax(-1)[:-1].gather(-1, read[1:, None])[:, 0]
            assert row[unread:] == pytest.approx(expected.tolist(), abs=1e-4)


def test_impossible_prompts():
    """A member that gives the prompt probability 0 has no weight; if all do, the weights are equal."""
    policy = PerplexityPolicy()
    one = scored([[-torch.inf, -40.0]], [[20, 20]], [[5, 5]])
    assert policy(one).tolist() == [[0.0, 1.0]]
    assert policy(scored([[-torch.inf] * 2], [[20, 20]], [[5, 5]])).tolist() == [[0.5, 0.5]]
    likelier = policy(scored([[-30.0, -40.0]], [[20, 20]], [[5, 5]]))
    assert likelier[0].tolist() == pytest.approx(torch.tensor([-6.0, -8.0]).softmax(0).tolist())


@pytest.mark.parametrize("kind", [EntropyPolicy, PerplexityPolicy])
@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "warm"])
def test_temperatures_that_are_refused(kind, temperature):
    with pytest.raises(ConfigError, match="temperature"):
        kind(temperature)


@pytest.mark.parametrize("policy", [EntropyPolicy(0.7), PerplexityPolicy(2.0)])
def test_saving(policy, tmp_path):
    """The policies are saved with the ensemble, by name and temperature."""
    assert policies[policy.registered_name] is type(policy)
    folders = []
    for name, (model, tokenizer) in zip(("a", "b"), pairs(["llama", "gpt2"]), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    EnsembleForCausalLM.from_members(folders, policy).save_pretrained(tmp_path / "ensemble")
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True).policy
    assert type(loaded) is type(policy)
    assert loaded.settings() == policy.settings()
