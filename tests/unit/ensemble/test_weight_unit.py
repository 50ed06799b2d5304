"""`weight_unit="byte"`: weights are shares of the text, and those of tokens are divided by bytes per token."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from hf_rlae.errors import ConfigError
from hf_rlae.policies import rescaled
from hf_rlae.vocabulary import bytes_per_token
from tests.support.ensembles import TEXTS, Schedule, encode, endless
from tests.support.models import pair, pairs
from tests.support.tokenizers import raw_bytes, sentencepiece_bpe

WEIGHTS = [[0.5, 0.3, 0.2], [0.1, 0.0, 0.9], [0.0, 1.0, 0.0]]
TRACED = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 9}


def trio():
    return [pair("llama", 0), pair("gpt2", 1, raw_bytes()), pair("llama", 2, sentencepiece_bpe())]


def scaled_by_hand(ensemble):
    """`WEIGHTS` divided by each member's bytes per token."""
    lengths = [bytes_per_token(vocabulary) for vocabulary in ensemble.engine.vocabularies]
    rows = [[weight / length for weight, length in zip(row, lengths, strict=True)] for row in WEIGHTS]
    assert max(lengths) > 1.3 > min(lengths) == 1.0
    return [[weight / sum(row) for weight in row] for row in rows]


def twins(**options):
    """An ensemble with shares of the text, and one whose policy gives the same weights as shares of tokens."""
    given = trio()
    by_text = endless(given, Schedule(*WEIGHTS), span_length=2, weight_unit="byte", **options)
    by_token = endless(given, Schedule(*scaled_by_hand(by_text)), span_length=2, **options)
    return by_text, by_token


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"do_sample": False}),
        ({"mixing": "power"}, {"do_sample": True, "top_k": 0}),
        ({"warp": "members"}, {"do_sample": True, "temperature": 0.7, "top_k": 9}),
        ({"draw": "token"}, {"do_sample": True, "top_k": 0}),
        ({"draw": "span"}, {"do_sample": True, "top_k": 0}),
        ({}, {"num_beams": 2, "do_sample": False}),
    ],
    ids=["greedy", "power", "warped members", "draws of tokens", "draws of spans", "beams"],
)
def test_generate(settings, options):
    """Law: it is an ensemble whose policy gives the divided weights."""
    results = []
    for ensemble in twins(**settings):
        torch.manual_seed(0)
        results.append(ensemble.generate(**encode(*TEXTS, tokenizer=ensemble.tokenizer), **TRACED, **options))
    ours, expected = results
    assert torch.equal(ours.sequences, expected.sequences)
    for name in ("span_weights", "member_logps"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), atol=1e-5, rtol=1e-4, equal_nan=True)
    for got, wanted in zip(ours.scores, expected.scores, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_forward_and_the_processor():
    """Law: the same for the loss of a text, and in the plain `generate` of the first member."""
    by_text, by_token = twins()
    inputs = encode(TEXTS[0], tokenizer=by_text.tokenizer)
    losses = [float(ensemble(**inputs, labels=inputs["input_ids"]).loss) for ensemble in (by_text, by_token)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    model = by_text.members[0].model
    texts = [
        model.generate(**encode(TEXTS[0]), max_new_tokens=9, logits_processor=[EnsembleLogitsProcessor(ensemble)])
        for ensemble in (by_text, by_token)
    ]
    assert torch.equal(*texts)


def test_all_weight_on_one_member_stays_all_weight():
    """Law: bit-exactly the same as with shares of tokens."""
    for member in range(3):
        policy = StaticPolicy([float(index == member) for index in range(3)])
        found = [
            endless(trio(), policy, weight_unit=unit).generate(**encode(TEXTS[0]), **TRACED, do_sample=False)
            for unit in ("token", "byte")
        ]
        assert torch.equal(found[0].sequences, found[1].sequences)
        assert torch.equal(found[0].span_weights, found[1].span_weights)
        assert all(map(torch.equal, found[0].scores, found[1].scores))


def test_members_with_one_tokenizer_are_not_affected():
    found = [
        endless(pairs(["llama", "gpt2"]), StaticPolicy([0.7, 0.3]), weight_unit=unit).generate(
            **encode(*TEXTS), **TRACED, do_sample=False
        )
        for unit in ("token", "byte")
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.equal(found[0].span_weights, found[1].span_weights)


@pytest.mark.parametrize("grain", ["byte", "character"])
def test_at_coarser_grains_every_choice_is_as_long(grain):
    """All members write bytes or characters there, so weights are shares of the text already."""
    policy, texts = StaticPolicy([0.6, 0.4]), []
    for unit in ("token", "byte"):
        ensemble = endless(trio()[:2], policy, weight_unit=unit, grain=grain)
        inputs = encode(TEXTS[0], tokenizer=ensemble.tokenizer)
        out = ensemble.generate(**inputs, **TRACED, do_sample=False)
        texts.append(out.sequences)
        torch.testing.assert_close(out.span_weights[0, 0], torch.tensor([0.6, 0.4]))
    assert torch.equal(*texts)


def test_small_weights_are_cut_as_the_policy_gives_them():
    """`min_weight` is in the unit of the policy's weights."""
    weights = [0.3, 0.7]
    ensemble = EnsembleForCausalLM.from_members(
        trio()[:2], StaticPolicy(weights), weight_unit="byte", min_weight=0.28, span_length=2
    )
    out = ensemble.generate(**encode(TEXTS[0]), **TRACED, do_sample=False)
    expected = rescaled(torch.tensor(weights), ensemble.engine.weight_scale)
    torch.testing.assert_close(out.span_weights[0, 0], expected)
    assert 0 < float(expected[0]) < 0.28


def test_it_is_saved_with_the_ensemble(tmp_path):
    ensemble = EnsembleForCausalLM.from_members(trio()[:2], StaticPolicy([0.3, 0.7]), weight_unit="byte")
    ensemble.save_pretrained(tmp_path, save_members=True)
    assert torch.equal(EnsembleForCausalLM.from_pretrained(tmp_path).engine.weight_scale, ensemble.engine.weight_scale)


def test_an_unknown_unit_is_refused():
    with pytest.raises(ConfigError, match="weight_unit='bytes': did you mean 'byte'"):
        endless(trio(), weight_unit="bytes")
