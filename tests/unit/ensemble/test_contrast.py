"""Ensembles with `mixing="contrast"`: decoding by the paper's equation, and the laws of every ensemble."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from hf_rlae.ensemble.chats.member_chats import padded
from hf_rlae.ensemble.mixing import ContrastMixing
from hf_rlae.errors import ConfigError
from hf_rlae.vocabulary.grain import AUTO_GRAIN, BYTE, CHARACTER, COMMON
from tests.support.different_tokenizers import TRACED, encoded, forced, member, stepped
from tests.support.ensembles import TEXTS, Schedule, encode, endless, own_logits, policy_of_text
from tests.support.models import constant, pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

GREEDY = {"do_sample": False, "max_new_tokens": 10}


def duo(policy=None, **settings):
    """A strong and a weak member with one tokenizer."""
    return endless([pair("llama"), pair("gpt2", 1)], policy, mixing="contrast", **settings)


def written(ensemble, ids, alpha, beta, temperature, columns=10):
    """A greedy completion by the equation, and the log-probabilities of each step, from two separate models."""
    strong, weak = (entry.model for entry in ensemble.members)
    found = []
    for _ in range(columns):
        own = own_logits(strong, ids)[-1].log_softmax(-1)
        other = (own_logits(weak, ids)[-1] / temperature).log_softmax(-1)
        score = own - other if beta is None else (1 + beta) * own - beta * other
        found.append(score.masked_fill(own.exp() < alpha * own.exp().max(), -torch.inf).log_softmax(-1))
        ids = torch.cat([ids, found[-1].argmax()[None]])
    return ids[-columns:], torch.stack(found)


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(0.1, None, 1.0), (0.1, 0.5, 1.0), (0.3, None, 0.5), (0.0, 1.0, 2.0)]
)
def test_a_batch_is_decoded_by_the_equation(alpha, beta, temperature):
    ensemble = duo(mixing_kwargs={"alpha": alpha, "beta": beta, "temperature": temperature})
    out = ensemble.generate(**encode(*TEXTS), **GREEDY, **TRACED)
    for row, text in enumerate(TEXTS):
        tokens, logps = written(ensemble, encode(text)["input_ids"][0], alpha, beta, temperature)
        assert torch.equal(out.sequences[row, -10:], tokens)
        got = stepped(out)[row].double().softmax(-1)
        torch.testing.assert_close(got, logps.exp(), atol=1e-5, rtol=0)


def test_teacher_forcing_equals_sampling_of_plausible_tokens():
    ensemble = duo(policy_of_text, span_length=3)
    inputs = encode(*TEXTS)
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=20, do_sample=True, top_k=0, **TRACED)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 20, dtype=torch.long)], 1)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad():
        full = ensemble(out.sequences, attention_mask=mask, prompt_length=width).logits[:, width - 1 : -1]
        strong = EnsembleForCausalLM.from_members(ensemble.members[:1])
        own = strong(out.sequences, attention_mask=mask).logits[:, width - 1 : -1].softmax(-1)
    torch.testing.assert_close(full.softmax(-1), stepped(out).softmax(-1), atol=1e-5, rtol=0)
    chosen = own.gather(-1, out.sequences[:, width:, None])[..., 0]
    assert (chosen >= 0.0999 * own.amax(-1)).all()
    assert (own.argmax(-1) != out.sequences[:, width:]).any()


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_all_weight_on_one_member_is_that_member(weights):
    """Law: without contrast the logits are the member's own, bitwise."""
    ensemble = duo(StaticPolicy(weights))
    ids = encode(TEXTS[0])["input_ids"]
    own = ensemble.members[weights.index(1.0)].model(ids).logits
    assert torch.equal(ensemble(ids).logits, own)


def test_a_policy_switches_the_contrast_on_and_off():
    """Law: the weights of a span say how much the weak member counts: `w_2 / w_1` times."""
    inputs = encode(TEXTS[0])
    ensemble = duo(Schedule([1.0, 0.0], [2 / 3, 1 / 3]), span_length=5)
    out = ensemble.generate(**inputs, **GREEDY, **TRACED)
    ids = inputs["input_ids"][0]
    strong, weak = (entry.model for entry in ensemble.members)
    alone = strong.generate(ids[None], do_sample=False, max_new_tokens=5, eos_token_id=None)[0, -5:]
    assert torch.equal(out.sequences[0, -10:-5], alone)
    own, other = (own_logits(model, torch.cat([ids, alone]))[-1].log_softmax(-1) for model in (strong, weak))
    expected = (own - 0.5 * other).masked_fill(own.exp() < 0.1 * own.exp().max(), -torch.inf)
    torch.testing.assert_close(out.logits[5][0].double().softmax(-1), expected.softmax(-1), atol=1e-5, rtol=0)


def test_beams_have_the_scores_of_teacher_forcing():
    ensemble = duo()
    inputs = encode(*TEXTS)
    out = ensemble.generate(
        **inputs, **GREEDY, num_beams=3, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
    )
    width = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 10, dtype=torch.long)], 1)
    with torch.no_grad():
        logits = ensemble(out.sequences, attention_mask=mask, prompt_length=width).logits
    logps = logits[:, width - 1 : -1].log_softmax(-1).gather(-1, out.sequences[:, width:, None])
    torch.testing.assert_close(out.sequences_scores, logps.sum((1, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 0}, {"num_beams": 2}])
def test_where_processors_rule_out_every_plausible_token_the_strong_member_chooses(sampling):
    """Only the end of the text is plausible, and `min_new_tokens` forbids it."""
    tokenizer = byte_level_bpe()
    logits = torch.zeros(len(tokenizer))
    logits[tokenizer.eos_token_id], logits[7] = 40.0, 20.0
    members = [constant(logits), constant(torch.zeros(len(tokenizer)))]
    ensemble = EnsembleForCausalLM.from_members(members, mixing="contrast")
    found = ensemble.generate(**encode("a"), min_new_tokens=3, max_new_tokens=8, **sampling)
    assert found[0, -4:].tolist() == [7, 7, 7, tokenizer.eos_token_id]


def test_a_member_that_outgrows_its_context_leaves_the_strong_one_alone():
    short = pair("gpt2", 1, max_position_embeddings=12)
    ensemble = endless([pair("llama"), short], mixing="contrast")
    ids = encode("def f(x):")["input_ids"]
    out = ensemble.generate(ids, do_sample=False, max_new_tokens=20)
    own = ensemble.members[0].model.generate(out[:, :14], do_sample=False, max_new_tokens=5, eos_token_id=None)
    assert torch.equal(out[:, :19], own)


# Inside a plain model


def test_inside_the_generate_of_the_strong_member():
    ensemble = duo()
    host, inputs = ensemble.members[0].model, encode(*TEXTS)
    expected = ensemble.generate(**inputs, **GREEDY)
    processor = EnsembleLogitsProcessor(ensemble)
    assert torch.equal(host.generate(**inputs, **GREEDY, eos_token_id=None, logits_processor=[processor]), expected)
    custom = ensemble.as_custom_generate()
    assert torch.equal(host.generate(**inputs, **GREEDY, eos_token_id=None, custom_generate=custom), expected)


# Different tokenizers


def next_bytes(ensemble, text):
    """The log-probabilities of the 256 bytes and STOP after each byte of a completion; all members read the prompt."""
    inputs, union = encoded(ensemble, TEXTS[0]), ensemble.union
    ids = torch.tensor([ensemble.tokenizer.completion_ids(text)])
    own, mask = padded(ensemble.new_cache().call.encoded(inputs["input_ids"], None)[0], 0)
    sequences = torch.cat([inputs["input_ids"], ids], 1)
    logits = forced(ensemble, inputs, sequences, member_input_ids=own[None], member_attention_mask=mask[None])[0]
    found = torch.full((len(logits), 257), -torch.inf, dtype=torch.double)
    known = {byte: union.id_of[bytes([byte])] for byte in range(256) if bytes([byte]) in union.id_of}
    found[:, list(known)] = logits[:, list(known.values())].double()
    found[:, -1] = logits[:, union.stop_id]
    return found.log_softmax(-1)


@pytest.mark.parametrize(("mixing", "settings"), [("contrast", {"alpha": 0.05}), ("guidance", {"guidance_scale": 1.7})])
@pytest.mark.parametrize("tokenizers", [(sentencepiece_bpe, sentencepiece_bpe), (byte_level_bpe, raw_bytes)])
def test_bytes_are_compared_as_each_member_alone_predicts_them(tokenizers, mixing, settings):
    """Law: which member proposed the text does not change a member's own distribution, also with one tokenizer."""
    members = [member("llama", tokenizers[0]), member("gpt2", tokenizers[1], 1)]
    options = {"grain": BYTE, "max_readings": 8, "min_reading": 0.0}
    strong, weak = (next_bytes(EnsembleForCausalLM.from_members([m], **options), "there them") for m in members)
    ensemble = EnsembleForCausalLM.from_members(members, mixing=mixing, mixing_kwargs=settings, **options)
    found = next_bytes(ensemble, "there them")
    expected = strong - weak if mixing == "contrast" else weak + 1.7 * (strong - weak)
    least = 0.05 if mixing == "contrast" else 0.0
    expected = expected.masked_fill(strong.exp() <= least * strong.exp().amax(-1, keepdim=True), -torch.inf)
    assert not (expected == torch.inf).any()
    torch.testing.assert_close(found.exp(), expected.softmax(-1), atol=2e-4, rtol=0)


@pytest.mark.parametrize("grain", [CHARACTER, BYTE, COMMON, AUTO_GRAIN])
def test_rows_of_different_tokenizers_are_what_they_are_alone(grain):
    members = [member(), member("gpt2", raw_bytes, 1)]
    ensemble = EnsembleForCausalLM.from_members(members, mixing="contrast", grain=grain, span_length=3)
    assert ensemble.union.grain == (CHARACTER if grain == AUTO_GRAIN else grain)
    options = {**GREEDY, **TRACED, "suppress_tokens": [ensemble.union.stop_id]}
    together = ensemble.generate(**encoded(ensemble, *TEXTS), **options)
    for row, text in enumerate(TEXTS):
        alone = ensemble.generate(**encoded(ensemble, text), **options)
        assert torch.equal(alone.sequences[0, -10:], together.sequences[row, -10:])
        torch.testing.assert_close(stepped(alone)[0].softmax(-1), stepped(together)[row].softmax(-1), atol=1e-4, rtol=0)


# What is refused, and what is saved


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"draw": "token"}, "draw='token' with mixing='contrast'"),
        ({"warp": "members"}, "warp='members' with mixing='contrast'.*leave warp out"),
        ({"mixing_kwargs": {"alpha": 2}}, "alpha=2: give"),
        ({"mixing_kwargs": {"beat": 1}}, "has no setting 'beat': did you mean 'beta'"),
        ({"mixing_kwargs": [0.1]}, "mixing_kwargs"),
    ],
)
def test_settings_that_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        duo(**settings)


def test_one_member_has_nothing_to_be_compared_with():
    with pytest.raises(ConfigError, match="compares the first member with the others, and there is only one"):
        endless([pair()], mixing="contrast")


def test_tokens_of_different_tokenizers_are_not_compared():
    members = [member(), member("gpt2", raw_bytes, 1)]
    with pytest.raises(ConfigError, match="grain='token': the probabilities of a token can be compared only if"):
        EnsembleForCausalLM.from_members(members, mixing="contrast")


def test_settings_are_saved_and_belong_to_their_mixing(tmp_path):
    ensemble = duo(mixing_kwargs={"alpha": 0.2, "beta": 0.5})
    ensemble.save_pretrained(tmp_path, save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path)
    mixing = loaded.engine.mixing
    assert (type(mixing), mixing.alpha, mixing.beta) == (ContrastMixing, 0.2, 0.5)
    assert torch.equal(loaded.generate(**encode(TEXTS[0]), **GREEDY), ensemble.generate(**encode(TEXTS[0]), **GREEDY))
    assert EnsembleForCausalLM.from_pretrained(tmp_path, mixing="log").config.mixing_kwargs is None
