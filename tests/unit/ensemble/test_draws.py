"""Sampling from one drawn member at a time gives exactly the mixture of tokens, of words or of spans."""

from __future__ import annotations

import copy
import itertools
import logging
from collections import Counter
from functools import cache

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.ensemble.draws import MemberDraws
from hf_rlae.ensemble.spans import SpanWeights
from hf_rlae.errors import ConfigError, InputError
from tests.support.ensembles import TEXTS, Schedule, columns_read, encode, endless
from tests.support.models import pair
from tests.support.tiers import slow
from tests.support.tokenizers import raw_bytes
from tests.support.worlds import bpe, build, random_model

STEPS = 3
SAMPLES = 4000
WEIGHTS = ((0.7, 0.3), (0.2, 0.8))
SEEDS = (10, 11, 12)


def p_value(counts: Counter, expected: dict[tuple[int, ...], float]) -> float:
    """The p-value of a chi-square test of counts against expected probabilities (small cells are merged)."""
    total = sum(counts.values())
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    assert set(counts) <= {key for key, probability in expected.items() if probability > 0}
    large = [key for key, probability in expected.items() if probability * total >= 5]
    cells = [(counts[key], expected[key] * total) for key in large]
    rest = total - sum(expected[key] for key in large) * total
    if rest >= 5:
        cells.append((total - sum(counts[key] for key in large), rest))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    assert len(cells) > 10
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2)))


def sampled(ensemble, ids, seed, **options) -> Counter:
    """The number of samples of each completion of `STEPS` tokens."""
    torch.manual_seed(seed)
    counts: Counter = Counter()
    for _ in range(2):
        out = ensemble.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=STEPS,
            num_return_sequences=SAMPLES // 2,
            **options,
        )
        counts.update(tuple(row) for row in out[:, ids.shape[1] :].tolist())
    return counts


def policy():
    return Schedule(*WEIGHTS)


# One tokenizer


@cache
def twins():
    """Two members with one tokenizer in which a token begins with a space."""
    tokenizer = bpe("a ", "_ a")
    return [(random_model(len(tokenizer), seed), tokenizer) for seed in (1, 2)]


def expected_of_one_tokenizer(unit: str, prompt: list[int], span_length: int, weights=WEIGHTS):
    """The expected probabilities by definition, summed over all draws."""
    models = [model for model, _ in twins()]
    size = len(twins()[0][1])
    space = twins()[0][1].convert_tokens_to_ids([" ", " a"])

    @cache
    def probs(member: int, ids: tuple[int, ...]):
        with torch.no_grad():
            return models[member](torch.tensor([[*prompt, *ids]])).logits[0, -1].double().softmax(-1).tolist()

    expected = {}
    for tokens in itertools.product(range(size), repeat=STEPS):
        states = {None: 1.0}  # the probability of the tokens so far if each member is drawn
        for step, token in enumerate(tokens):
            w = weights[step // span_length % 2]
            is_fresh = unit == "token" or step == 0
            is_fresh |= unit == "span" and step % span_length == 0
            is_fresh |= unit == "word" and tokens[step - 1] in space
            after = dict.fromkeys(range(2), 0.0)
            for member, weight in states.items():
                drawn = enumerate(w) if is_fresh else [(member, 1.0)]
                for new, chance in drawn:
                    after[new] += weight * chance * probs(new, tokens[:step])[token]
            states = after
        expected[tokens] = sum(states.values())
    return expected


@pytest.mark.parametrize(("unit", "span_length"), [("token", 2), ("word", 2), ("span", 2), ("span", 1)])
def test_exact_for_one_tokenizer(unit, span_length):
    """Law: draws give the mixture of tokens, words or spans, by enumeration of all texts."""
    ensemble = endless(twins(), policy(), span_length=span_length, draw=unit)
    prompt = [4, 5]
    expected = expected_of_one_tokenizer(unit, prompt, span_length)
    values = [
        p_value(sampled(ensemble, torch.tensor([prompt]), seed, eos_token_id=None, pad_token_id=3), expected)
        for seed in SEEDS
    ]
    assert min(values) > 0.01, values


def test_a_wrong_sampler_is_rejected():
    """The test can fail: it detects other weights and another unit."""
    prompt = [4, 5]
    counts = sampled(
        endless(twins(), StaticPolicy([0.45, 0.55]), draw="token"),
        torch.tensor([prompt]),
        0,
        eos_token_id=None,
        pad_token_id=3,
    )
    assert p_value(counts, expected_of_one_tokenizer("token", prompt, 2)) < 0.01
    spans = sampled(
        endless(twins(), policy(), span_length=3, draw="span"),
        torch.tensor([prompt]),
        0,
        eos_token_id=None,
        pad_token_id=3,
    )
    weights = (WEIGHTS[0], WEIGHTS[0])
    assert p_value(spans, expected_of_one_tokenizer("token", prompt, 3, weights)) < 0.01
    assert p_value(spans, expected_of_one_tokenizer("span", prompt, 3, weights)) > 0.01


@pytest.mark.slow
def test_rows_that_share_a_draw_keep_their_law():
    """Law: `draw_scope="batch"` makes rows dependent, but does not change the distribution of each row."""
    ensemble = endless(twins(), policy(), span_length=2, draw="token", draw_scope="batch")
    prompt = torch.tensor([[4, 5]])
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 3}
    torch.manual_seed(0)
    counts: Counter = Counter()
    for _ in range(600):
        out = ensemble.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
        counts[tuple(out[0, 2:].tolist())] += 1
    assert p_value(counts, expected_of_one_tokenizer("token", [4, 5], 2)) > 0.01


# Different tokenizers


@cache
def place(grain="token"):
    return build([bpe("ab "), bpe("ab ", "a b", "_ a")], 3).at(grain)


def expected_of_two_tokenizers(unit: str, prompts, span_length: int, grain: str):
    """The expected probabilities over the union by definition, with each member's readings, summed over all draws."""
    world = place(grain)
    union = world.union
    tokens = [*sorted(union.id_of.values()), union.stop_id]
    expected: dict[tuple[int, ...], float] = {}

    def extend(written, member, references, pending, chance):
        step = len(written)
        if step == STEPS or (written and written[-1] == union.stop_id):
            key = written + (world_pad,) * (STEPS - step)
            expected[key] = expected.get(key, 0.0) + chance
            return
        w = WEIGHTS[step // span_length % 2]
        is_fresh = unit == "token" or step == 0
        is_fresh |= unit == "span" and step % span_length == 0
        is_fresh |= unit == "word" and bool(written) and union.pieces[written[-1]].startswith(b" ")
        for new, weight in enumerate(w) if is_fresh else [(member, 1.0)]:
            drawn_reference = copy.copy(references[new])
            drawn_reference.readings = list(drawn_reference.readings)
            raw, shares = pending[new]
            if raw:  # a member's own proposal counts as its own only if the same member is drawn next
                drawn_reference.update(raw, *(shares if new == member else (0.0, 0.0)))
            whole, unfinished = drawn_reference.proposals()
            for u in tokens:
                p = float(whole[u] + unfinished[u])
                if p <= 0:
                    continue
                updated = list(references)
                updated[new] = drawn_reference
                piece = union.pieces[u] or b""
                waiting = [(text + piece, (0.0, 0.0)) for text, _ in pending]
                waiting[new] = (piece, (float(whole[u]) / p, float(unfinished[u]) / p))
                extend((*written, u), new, updated, waiting, chance * weight * p)

    members = [voice.member for voice in world.voices]
    world_pad = EnsembleForCausalLM.from_members(members, grain=grain).tokenizer.pad_token_id
    references = [world.reference(k, prompt) for k, prompt in enumerate(prompts)]
    extend((), None, references, [(b"", (0.0, 0.0))] * 2, 1.0)
    return expected


@pytest.mark.parametrize(
    ("unit", "span_length", "grain"),
    [
        ("word", 2, "token"),
        *slow(("token", 2, "token"), ("span", 2, "token"), ("word", 2, "byte"), ("token", 2, "byte")),
    ],
)
def test_exact_for_two_tokenizers(unit, span_length, grain):
    """Law: the same with different tokenizers, including the readings of members that have unread text."""
    world = place(grain)
    members = [voice.member for voice in world.voices]
    ensemble = EnsembleForCausalLM.from_members(members, policy(), span_length=span_length, draw=unit, grain=grain)
    ids = torch.tensor([[world.voices[0].id("a"), world.voices[0].id("b")]])
    prompts = ensemble.engine.encoder(tuple(ids[0].tolist()))
    expected = expected_of_two_tokenizers(unit, prompts, span_length, grain)
    values = [p_value(sampled(ensemble, ids, seed), expected) for seed in SEEDS]
    assert min(values) > 0.01, values


# What is run


@pytest.mark.parametrize("tokenizer", [None, raw_bytes], ids=["one_tokenizer", "two_tokenizers"])
def test_only_the_drawn_member_is_run(tokenizer):
    """At batch size 1 there is one forward pass per token, and the trace shows the member."""
    members = [pair("llama"), pair("gpt2", 1, tokenizer() if tokenizer else None)]
    ensemble = endless(members, StaticPolicy([0.5, 0.5]), span_length=4, draw="token")
    torch.manual_seed(0)
    with columns_read(*(model for model, _ in members)) as calls:
        out = ensemble.generate(
            **encode(TEXTS[0]), do_sample=True, top_k=0, max_new_tokens=20, return_dict_in_generate=True
        )
    assert 20 <= len(calls[0]) + len(calls[1]) <= 20 + 1
    assert min(len(calls[0]), len(calls[1])) > 3
    spoke = ~out.member_logps.isnan()
    assert torch.equal(spoke.sum(-1), torch.ones(1, 20, dtype=torch.long))
    assert spoke[0, :, 0].sum() == len(calls[0])


def test_spans_are_routed():
    """With `draw="span"` the whole span is sampled from one member."""
    members = [pair("llama"), pair("gpt2", 1, raw_bytes())]
    ensemble = endless(members, StaticPolicy([0.5, 0.5]), span_length=5, draw="span")
    torch.manual_seed(1)
    out = ensemble.generate(**encode(*TEXTS), do_sample=True, top_k=0, max_new_tokens=20, return_dict_in_generate=True)
    speakers = (~out.member_logps.isnan()).float().argmax(-1)
    assert len(set(speakers.flatten().tolist())) == 2
    for row in speakers.view(3, 4, 5).tolist():
        assert all(len(set(span)) == 1 for span in row)


def test_one_draw_for_all_rows():
    """With `draw_scope="batch"` and equal weights all rows draw the same member."""
    members = [pair("llama"), pair("gpt2", 1)]
    ensemble = endless(members, StaticPolicy([0.5, 0.5]), draw="token", draw_scope="batch")
    torch.manual_seed(1)
    with columns_read(*(model for model, _ in members)) as calls:
        ensemble.generate(**encode(*TEXTS), do_sample=True, top_k=0, max_new_tokens=20)
    assert len(calls[0]) + len(calls[1]) == 20


def test_members_without_weight_are_never_drawn():
    """A member with weight 0 is never drawn."""
    ensemble = endless(twins(), StaticPolicy([0.0, 1.0]), draw="token")
    alone = endless(twins()[1:], draw=None)
    texts = []
    for each in (ensemble, alone):
        torch.manual_seed(0)
        out = each.generate(
            **{"input_ids": torch.tensor([[4, 5]])}, do_sample=True, top_k=0, max_new_tokens=30, pad_token_id=3
        )
        texts.append(out)
    assert set(texts[0][0].tolist()) <= set(range(7))
    counts = sampled(ensemble, torch.tensor([[4, 5]]), 0, eos_token_id=None, pad_token_id=3)
    only = expected_of_one_tokenizer("token", [4, 5], 2, ((0.0, 1.0), (0.0, 1.0)))
    assert p_value(counts, only) > 0.01


def test_another_member_is_drawn_for_one_without_mass(caplog):
    """If the text has outgrown the drawn member's context, another member is drawn and the text continues."""
    members = [pair("llama", 0, raw_bytes()), pair("gpt2", 1, max_position_embeddings=20)]
    ensemble = endless(members, StaticPolicy([0.1, 0.9]), draw="token")
    inputs = dict(ensemble.tokenizer(["Once upon a time"], return_tensors="pt"))
    torch.manual_seed(0)
    out = ensemble.generate(
        **inputs,
        do_sample=True,
        top_k=0,
        max_new_tokens=60,
        suppress_tokens=[ensemble.union.stop_id],
        return_dict_in_generate=True,
    )
    assert "outgrown the context" in caplog.text
    assert not out.member_logps[0, -1, 0].isnan()
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + 60


# What is refused


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"do_sample": False}, "do_sample"),
        ({"do_sample": True, "num_beams": 2}, "num_beams"),
        ({"do_sample": True, "prompt_lookup_num_tokens": 3}, "assisted"),
    ],
)
def test_ways_of_decoding_that_are_refused(options, word):
    """Greedy search, beam search and assisted decoding raise an error: they need the mixture's probabilities."""
    ensemble = endless([pair("llama"), pair("gpt2", 1)], draw="token")
    with pytest.raises(InputError, match=word):
        ensemble.generate(**encode(TEXTS[0]), max_new_tokens=3, **options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"draw": "sentence"}, "draw"),
        ({"draw_scope": "all"}, "draw_scope"),
        ({"draw": "token", "mixing": "log"}, "mixing"),
    ],
)
def test_options_that_are_refused(options, word):
    """Unknown units and scopes raise an error, and so does log mixing, which draws cannot give."""
    with pytest.raises(ConfigError, match=word):
        endless([pair("llama"), pair("gpt2", 1)], **options)


def test_warping_is_logged(caplog):
    """Temperature and top-p act on the drawn member, which is logged."""
    ensemble = endless([pair("llama"), pair("gpt2", 1)], draw="token")
    with caplog.at_level(logging.INFO, logger="hf_rlae"):
        ensemble.generate(**encode(TEXTS[0]), max_new_tokens=2, do_sample=True, top_p=0.9, temperature=0.7, top_k=0)
    assert "temperature=0.7, top_p=0.9 act on the drawn member" in caplog.text


def test_a_member_drawn_for_a_word_is_drawn_no_longer_than_it_has_weight():
    """Law: a draw holds for a word, but not for a token at which the member has no weight."""
    draws = MemberDraws("word", "row", torch.zeros(9, dtype=torch.bool))  # no id starts a word
    spans = SpanWeights(2, torch.tensor([2]), torch.tensor([0]))
    for column, weights in ((1, [1.0, 0.0]), (2, [1.0, 0.0]), (3, [0.0, 1.0]), (4, [0.0, 1.0])):
        for query in spans.queries(column, column + 1):
            spans.set(query, torch.tensor([weights]))
        draws.choose(spans, torch.zeros(1, column + 1, dtype=torch.long), column)
    assert [(column, members.tolist()) for column, members in draws.drawn] == [(2, [0]), (3, [0]), (4, [1]), (5, [1])]


def test_a_member_drawn_for_a_span_is_replaced_where_it_is_excluded():
    """Law: within a span the draw holds, except in the rows in which the drawn member cannot continue the text."""
    draws = MemberDraws("span", "row")
    spans = SpanWeights(4, torch.tensor([2, 2, 2]), torch.tensor([0, 0, 0]))
    (query,) = spans.queries(1, 2)
    spans.set(query, torch.full((3, 2), 0.5))
    draws.choose(spans, torch.zeros(3, 2, dtype=torch.long), 1)
    before = draws.drawn[-1][1].tolist()
    draws.choose(spans, torch.zeros(3, 3, dtype=torch.long), 2, [[before[0]], [], [1 - before[2]]])
    assert draws.drawn[-1][1].tolist() == [1 - before[0], before[1], before[2]]
