"""`warp="members"`: temperature, top-p and the like act on each member, and the warped distributions are mixed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from hf_rlae.ensemble.mixing import mixings
from hf_rlae.errors import ConfigError, InputError
from tests.support.ensembles import TEXTS, encode, endless, own_logits, policy_of_text
from tests.support.models import constant, pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes

TRACED = {"return_dict_in_generate": True, "output_scores": True, "do_sample": True}
WARPERS = {
    "temperature": {"temperature": 0.6, "top_k": 0},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7, "top_k": 0},
    "min_p": {"min_p": 0.2, "top_k": 0},
    "typical_p": {"typical_p": 0.6, "top_k": 0},
    "cutoffs": {"epsilon_cutoff": 3e-3, "eta_cutoff": 3e-3, "top_k": 0},
    "several": {"temperature": 1.5, "top_k": 40, "top_p": 0.8},
    "after other processors": {"temperature": 0.7, "top_p": 0.8, "top_k": 0, "repetition_penalty": 1.3},
    "after ids were ruled out": {"top_k": 2, "suppress_tokens": list(range(60, 120))},
}


@cache
def members(one_tokenizer: bool):
    """Two members, with one tokenizer or two. Their logits are far apart, so that warping matters."""
    given = [pair("llama", 0), pair("gpt2", 1, byte_level_bpe() if one_tokenizer else raw_bytes())]
    for model, _ in given:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(8.0)
    return given


def ensembles(one_tokenizer, policy, **settings):
    return endless(members(one_tokenizer), policy, span_length=2, **settings)


def processed(ensemble, options, sequences, column, scores, width):
    """transformers' processors for the options, on scores `(V,)` after `column` columns of a text."""
    settings = GenerationConfig(**options, do_sample=True)
    settings._eos_token_tensor = None
    return ensemble._get_logits_processor(settings, width)(sequences[None, :column], scores[None].float())[0]


@pytest.mark.parametrize("options", WARPERS.values(), ids=WARPERS)
@pytest.mark.parametrize("member", [0, 1])
def test_all_weight_on_one_member_is_its_own_generate(member, options):
    """Law: with one tokenizer, scores and samples are those of the member's own `generate`."""
    model, _ = members(True)[member]
    inputs = encode(*TEXTS[:2])
    ensemble = ensembles(True, StaticPolicy([1.0 - member, float(member)]), warp="members")
    torch.manual_seed(0)
    expected = model.generate(**inputs, **TRACED, max_new_tokens=8, eos_token_id=None, **options)
    torch.manual_seed(0)
    got = ensemble.generate(**inputs, **TRACED, max_new_tokens=8, **options)
    assert torch.equal(got.sequences, expected.sequences)
    for ours, own in zip(got.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, own)


@pytest.mark.parametrize("options", WARPERS.values(), ids=WARPERS)
@pytest.mark.parametrize("mixing", ["linear", "power"])
def test_scores_are_the_mixture_of_what_the_warpers_leave(options, mixing):
    """Law: with one tokenizer, each step has the mixing's formula of the members' own warped logits."""
    ensemble = ensembles(True, policy_of_text, warp="members", mixing=mixing)
    inputs = encode(TEXTS[0])
    out = ensemble.generate(**inputs, **TRACED, max_new_tokens=6, **options)
    text, width = out.sequences[0], inputs["input_ids"].shape[1]
    own = [own_logits(model, text) for model, _ in members(True)]
    for step, scores in enumerate(out.scores):
        warped = [
            processed(ensemble, options, text, width + step, logits[width + step - 1], width)[None, None]
            for logits in own
        ]
        weights = out.span_weights[:, step // 2, None]
        expected = mixings[mixing].of_logits(warped, [entry.logsumexp(-1) for entry in warped], weights)[0]
        torch.testing.assert_close(scores.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "grain"),
    [
        *(pytest.param(options, "token", id=name) for name, options in WARPERS.items()),
        pytest.param(WARPERS["after other processors"], "byte", id="bytes"),
        pytest.param(WARPERS["after ids were ruled out"], "character", id="characters"),
    ],
)
def test_different_tokenizers(options, grain):
    """Law: each step mixes the members' warped distributions over the union; the text's readings are as ever."""
    ensemble = ensembles(False, policy_of_text, warp="members", grain=grain)
    inputs = encode(TEXTS[0], tokenizer=ensemble.tokenizer)
    out = ensemble.generate(**inputs, **TRACED, max_new_tokens=6, **options)
    text, width = out.sequences[0], inputs["input_ids"].shape[1]
    cache_of_text = ensemble.new_cache(record=True)
    with torch.no_grad():
        ensemble(out.sequences[:, :-1], past_key_values=cache_of_text, prompt_length=width, logits_to_keep=6)
    known = cache_of_text.trace.pending.outputs
    for step, scores in enumerate(out.scores):
        expected = torch.zeros(ensemble.config.vocab_size)
        for weight, (probs, log_z) in zip(out.span_weights[0, step // 2].tolist(), known, strict=True):
            raw = ensemble.union.spread(probs[0, step].log()) + log_z[0, step]
            expected += weight * processed(ensemble, options, text, width + step, raw, width).softmax(-1)
        torch.testing.assert_close(scores[0].softmax(-1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("one_tokenizer", [True, False])
def test_it_is_what_draws_do(one_tokenizer):
    """Law: the mean, by the weights, of the distributions that `draw="token"` samples from."""
    policy, options = (
        StaticPolicy([0.7, 0.3]),
        {"temperature": 2.0, "top_p": 0.8, "top_k": 0, "repetition_penalty": 1.3},
    )
    drawing = ensembles(one_tokenizer, policy, draw="token")
    mixing = ensembles(one_tokenizer, policy, warp="members")
    inputs = encode(TEXTS[0], tokenizer=mixing.tokenizer)
    drawn = {}
    for seed in range(20):
        torch.manual_seed(seed)
        out = drawing.generate(**inputs, **TRACED, max_new_tokens=1, **options)
        drawn[int(out.drawn_members[0, 0])] = out.scores[0].softmax(-1)
    expected = 0.7 * drawn[0] + 0.3 * drawn[1]
    got = mixing.generate(**inputs, **TRACED, max_new_tokens=1, **options).scores[0].softmax(-1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
    default = ensembles(one_tokenizer, policy).generate(**inputs, **TRACED, max_new_tokens=1, **options)
    assert float((default.scores[0].softmax(-1) - expected).abs().max()) > 0.01


@pytest.mark.parametrize("one_tokenizer", [True, False])
@pytest.mark.parametrize("options", [{"do_sample": False, "repetition_penalty": 1.3}, {"do_sample": True, "top_k": 0}])
def test_without_warpers_nothing_changes(one_tokenizer, options):
    """Law: greedy search, and sampling at temperature 1, are those of `warp="mixture"`, bit-exactly."""
    results = []
    for warp in ("mixture", "members"):
        ensemble = ensembles(one_tokenizer, policy_of_text, warp=warp)
        torch.manual_seed(0)
        inputs = encode(*TEXTS, tokenizer=ensemble.tokenizer)
        results.append(ensemble.generate(**inputs, **{**TRACED, **options}, max_new_tokens=8))
    assert torch.equal(results[0].sequences, results[1].sequences)
    assert all(map(torch.equal, results[0].scores, results[1].scores))


@pytest.mark.parametrize("one_tokenizer", [True, False])
def test_the_trace_has_the_distributions_that_are_mixed(one_tokenizer):
    """Law: the weighted sum of the members' recorded probabilities is the probability of the sampled token."""
    ensemble = ensembles(one_tokenizer, policy_of_text, warp="members")
    inputs = encode(*TEXTS, tokenizer=ensemble.tokenizer)
    out = ensemble.generate(**inputs, **TRACED, max_new_tokens=6, temperature=0.6, top_k=3)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    probs = torch.stack(out.scores, dim=1).softmax(-1).gather(-1, tokens[..., None])[..., 0]
    weights = out.span_weights.repeat_interleave(2, dim=1)
    torch.testing.assert_close((weights * out.member_logps.exp()).sum(-1), probs, atol=1e-5, rtol=1e-4)
    assert bool((out.member_logps == -torch.inf).any())  # top_k leaves out tokens that the other member sampled


@pytest.mark.parametrize("one_tokenizer", [True, False])
def test_a_member_for_which_no_token_is_left_loses_its_weight(one_tokenizer):
    """Where the only id that is not ruled out is one that the other member lacks, it leaves the mixture."""
    ensemble = ensembles(one_tokenizer, StaticPolicy([0.5, 0.5]), warp="members")
    inputs = encode(TEXTS[0], tokenizer=ensemble.tokenizer)
    long = next(i for i, piece in enumerate(ensemble.pieces) if piece and len(piece) > 2)
    others = [i for i in range(ensemble.config.vocab_size) if i != long]
    out = ensemble.generate(**inputs, **TRACED, max_new_tokens=3, temperature=0.5, suppress_tokens=others)
    assert out.sequences[0, -3:].tolist() == [long] * 3
    assert out.member_logps[0].isnan().tolist() == [[False, not one_tokenizer]] * 3
    assert bool((out.member_logps[0].nan_to_num() == 0).all())  # its probability is 1 for the others


def test_min_new_tokens_at_the_end_of_all_contexts():
    """As with `warp="mixture"`: a text that no member can continue ends, or raises an error if it must not."""
    short = [pair("llama", 0, max_position_embeddings=24), pair("gpt2", 1, raw_bytes(), max_position_embeddings=24)]
    ensemble = EnsembleForCausalLM.from_members(short, warp="members", end_token_ids=[[0], [0]])
    inputs = encode(TEXTS[1], tokenizer=ensemble.tokenizer)
    options = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 60}
    assert ensemble.generate(**inputs, **options)[0, -1] == ensemble.union.stop_id
    with pytest.raises(InputError, match="must not end"):
        ensemble.generate(**inputs, **options, min_new_tokens=60)


def test_processors_after_the_warpers_act_on_the_mixture():
    """A processor of the user is called once per member if a warper follows it, and once per step otherwise."""
    calls = []

    def watch(ids, scores):
        calls.append(scores.shape)
        return scores

    ensemble = ensembles(True, StaticPolicy([0.5, 0.5]), warp="members")
    greedy = {**encode(TEXTS[0]), "do_sample": False, "max_new_tokens": 3}
    ensemble.generate(**greedy, logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5), watch]))
    assert len(calls) == 3
    ensemble.generate(**greedy, logits_processor=LogitsProcessorList([watch, TemperatureLogitsWarper(0.5)]))
    assert len(calls) == 3 + 2 * 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"guidance_scale": 1.5}, r"guidance_scale=1\.5"),
    ],
)
def test_ways_of_decoding_that_are_refused(options, word):
    """They need the mixture's probabilities; without sampling there is nothing to warp, and they work."""
    ensemble = ensembles(True, None, warp="members")
    with pytest.raises(InputError, match=f"{word} with warp='members'"):
        ensemble.generate(**encode(TEXTS[0]), max_new_tokens=3, do_sample=True, **options)
    ensemble.generate(**encode(TEXTS[0]), max_new_tokens=3, do_sample=False, **options)


def test_where_it_is_refused():
    with pytest.raises(ConfigError, match=r"warp='member': did you mean 'members'"):
        ensembles(True, None, warp="member")
    with pytest.raises(ConfigError, match='warp="members"'):
        EnsembleLogitsProcessor(ensembles(True, None, warp="members"))


def test_inside_a_plain_model_by_custom_generate():
    """`as_custom_generate` passes the settings on: the texts are those of the ensemble's own `generate`."""
    (host, tokenizer), other = members(False)
    ensemble = EnsembleForCausalLM.from_members([(host, tokenizer), other], policy_of_text, warp="members")
    inputs = encode(TEXTS[0])
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 0.6, "top_k": 5, "eos_token_id": None}
    torch.manual_seed(0)
    got = host.generate(**inputs, custom_generate=ensemble.as_custom_generate(), **options)
    torch.manual_seed(0)
    own = ensemble.generate(**inputs, **options)
    assert ensemble.tokenizer.decode(own[0]) == tokenizer.decode(got[0])


@pytest.mark.parametrize("mixing", ["linear", "log", "power"])
def test_a_member_with_one_tokenizer_for_which_no_token_is_left(mixing):
    """The only token of one member is ruled out: the mixture is the other member."""
    size = len(byte_level_bpe())
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    logits[1] = torch.where(torch.arange(size) == 70, 0.0, -torch.inf)
    given = [constant(row) for row in logits]
    inputs, options = encode(TEXTS[0]), {"temperature": 0.5, "suppress_tokens": [70], "max_new_tokens": 3}
    results = []
    for weights in ([0.4, 0.6], [1.0, 0.0]):
        ensemble = endless(given, StaticPolicy(weights), warp="members", mixing=mixing)
        torch.manual_seed(0)
        results.append(ensemble.generate(**inputs, **TRACED, **options))
    assert torch.equal(results[0].sequences, results[1].sequences)
    torch.testing.assert_close(results[0].scores[0].softmax(-1), results[1].scores[0].softmax(-1))
    assert results[0].member_logps[0].isnan().tolist() == [[False, True]] * 3
