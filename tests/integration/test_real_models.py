"""The real tiny models write together, and the laws hold for them."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from tests.conftest import shared_path
from tests.support.tiers import slow

PROMPT = "Once upon a time, there was a little"
STORY = "stories260K"
CHARACTERS = "babyllama-tok105"
RWKV = "tiny-rwkv4-660K"
OTHER = "llama2xs"

_loaded: dict[str, tuple] = {}


def real(name):
    """A real model with its tokenizer; skips the test where it is absent."""
    path = shared_path("models", name)
    if name not in _loaded:
        _loaded[name] = (AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    return _loaded[name]


def ensemble_of(names, weights, **options):
    return EnsembleForCausalLM.from_members([real(name) for name in names], StaticPolicy(weights), **options)


def encoded(ensemble, *texts):
    return dict(ensemble.tokenizer(list(texts), return_tensors="pt", padding=True))


def own_text(name, text, tokens):
    """A member's own greedy text, and whether it came to its end."""
    model, tokenizer = real(name)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    ends = {tokenizer.eos_token_id}
    silent = [i for i in tokenizer.all_special_ids if i not in ends]
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, suppress_tokens=silent or None)
    return tokenizer.decode(out[0], skip_special_tokens=True), int(out[0, -1]) in ends


def test_one_member_is_that_member():
    """Law: one member = that member, bitwise, on a real model."""
    for name in (STORY, CHARACTERS, OTHER):
        model, tokenizer = real(name)
        ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)])
        inputs = encoded(ensemble, PROMPT, "The dog")
        options = {"max_new_tokens": 40, "do_sample": True, "output_scores": True, "return_dict_in_generate": True}
        torch.manual_seed(0)
        expected = model.generate(**inputs, **options)
        torch.manual_seed(0)
        got = ensemble.generate(**inputs, **options)
        assert torch.equal(got.sequences, expected.sequences)
        assert all(torch.equal(ours, own) for ours, own in zip(got.scores, expected.scores, strict=True))


@pytest.mark.parametrize("which", [2, *slow(0, 1)])
def test_all_weight_on_one(which):
    """Law: with all weight on a member, its own greedy text comes out, to the byte and to the stop.

    After the end of its context the others continue.
    """
    names = [STORY, CHARACTERS, OTHER]
    ensemble = ensemble_of(names, [float(k == which) for k in range(3)])
    for text in (PROMPT, "The dog and the cat"):
        expected, ended = own_text(names[which], text, 250)
        inputs = encoded(ensemble, text)
        out = ensemble.generate(**inputs, max_new_tokens=250, do_sample=False, return_dict_in_generate=True)
        own = int((~out.member_logps[0, :, which].isnan()).sum())
        written = out.sequences[0, : inputs["input_ids"].shape[1] + own]
        got = ensemble.tokenizer.decode(written, skip_special_tokens=True)
        shorter = min(len(got), len(expected))
        assert got[:shorter] == expected[:shorter]
        assert shorter > 150
        if ended and int(written[-1]) == ensemble.union.stop_id:
            assert got == expected


@pytest.mark.parametrize(
    ("names", "weights"),
    [([STORY, CHARACTERS], [0.5, 0.5]), *slow(([CHARACTERS, STORY], [0.2, 0.8]), ([STORY, RWKV], [0.7, 0.3]))],
)
def test_teacher_forcing_equals_stepping(names, weights):
    """Law: `forward` over the whole text = token-by-token calls; a batch = its rows; sums are 1."""
    ensemble = ensemble_of(names, weights, span_length=4)
    inputs = encoded(ensemble, PROMPT, "The dog")
    torch.manual_seed(0)
    out = ensemble.generate(
        **inputs,
        max_new_tokens=40,
        do_sample=True,
        suppress_tokens=[ensemble.union.stop_id],
        output_logits=True,
        return_dict_in_generate=True,
    )
    stepped = torch.stack(out.logits, dim=1).log_softmax(-1)
    width = inputs["input_ids"].shape[1]
    torch.testing.assert_close(stepped.exp().sum(-1), torch.ones(2, 40), atol=1e-6, rtol=0)
    for row in range(2):
        keep = inputs["attention_mask"][row].bool()
        ids = torch.cat([inputs["input_ids"][row, keep], out.sequences[row, width:]])[None]
        start = int(keep.sum())
        with torch.no_grad():
            forced = ensemble(ids, prompt_length=start).logits[0, start - 1 : -1].log_softmax(-1)
        likely = stepped[row] > -12
        torch.testing.assert_close(forced[likely], stepped[row][likely], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("names", "weights"), [([STORY, CHARACTERS], [0.5, 0.5]), *slow(([STORY, CHARACTERS, RWKV], [0.5, 0.3, 0.2]))]
)
def test_they_write_a_story_together(names, weights):
    """The text is English: nearly all of its words are words of children's stories."""
    corpus = shared_path("data", "tinystories", "tinystories_v1_part.txt").read_text(encoding="utf-8").lower()
    known = set(re.findall(r"[a-z']+", corpus))
    ensemble = ensemble_of(names, weights)
    out = ensemble.generate(**encoded(ensemble, PROMPT), max_new_tokens=120, do_sample=False)
    text = ensemble.tokenizer.decode(out[0], skip_special_tokens=True)
    words = re.findall(r"[a-z']+", text.lower().rsplit(" ", 1)[0])
    assert text.startswith(PROMPT)
    assert len(words) > 30
    assert len(set(words)) > 15
    assert sum(word not in known for word in words) <= 0.05 * len(words), text


def test_beams_lookup_and_samples():
    """Beams, prompt lookup and several samples a prompt go through an ensemble with different tokenizers."""
    ensemble = ensemble_of([STORY, CHARACTERS], [0.6, 0.4])
    inputs = encoded(ensemble, PROMPT)
    greedy = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False)
    looked_up = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(greedy, looked_up)
    beams = ensemble.generate(
        **inputs, max_new_tokens=30, num_beams=3, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    assert beams.sequences.shape[0] == 1
    torch.manual_seed(0)
    samples = ensemble.generate(**inputs, max_new_tokens=30, do_sample=True, num_return_sequences=3)
    assert len({tuple(row) for row in samples.tolist()}) == 3


def test_an_assistant_model():
    """A small model of the first member's tokenizer proposes tokens; the text stays the same."""
    ensemble = ensemble_of([STORY, OTHER], [0.5, 0.5])
    inputs = encoded(ensemble, PROMPT)
    plain = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False)
    assistant = real(OTHER)[0]
    assert torch.equal(
        plain, ensemble.generate(**inputs, max_new_tokens=40, do_sample=False, assistant_model=assistant)
    )


@pytest.mark.slow
def test_the_end_of_a_context(caplog):
    """Past the end of a member's context the others go on, with a warning."""
    ensemble = ensemble_of([STORY, CHARACTERS], [0.5, 0.5])
    limits = [member.context_length for member in ensemble.members]
    longest = max(limits)
    out = ensemble.generate(
        **encoded(ensemble, PROMPT),
        max_new_tokens=longest + 40,
        do_sample=True,
        suppress_tokens=[ensemble.union.stop_id],
    )
    assert "outgrown the context" in caplog.text
    assert out.shape[1] > min(limits)
