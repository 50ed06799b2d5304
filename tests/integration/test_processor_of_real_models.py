"""The real tiny models write inside the plain `generate` of one of them."""

from __future__ import annotations

import re

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from tests.conftest import shared_path
from tests.integration.test_real_models import CHARACTERS, OTHER, PROMPT, RWKV, STORY, real
from tests.support.tiers import slow


def processor_of(names, weights, **options):
    models = [real(name)[0] for name in names]
    tokenizers = [real(name)[1] for name in names]
    return EnsembleLogitsProcessor.from_members(
        models[0], models[1:], tokenizers=tokenizers, policy=StaticPolicy(weights), **options
    )


def prompt_of(name, *texts):
    return dict(real(name)[1](list(texts), return_tensors="pt", padding=True, return_token_type_ids=False))


@pytest.mark.parametrize(
    "mode", [{"do_sample": True}, *slow({"do_sample": False}, {"num_beams": 3, "do_sample": False})]
)
def test_one_tokenizer_equals_the_ensemble(mode):
    """Law: two models of one tokenizer write what they write as an ensemble."""
    pairs = [real(STORY), real(OTHER)]
    ensemble = EnsembleForCausalLM.from_members(pairs, StaticPolicy([0.6, 0.4]))
    options = {**mode, "max_new_tokens": 60, "pad_token_id": pairs[0][1].pad_token_id}
    inputs = prompt_of(STORY, PROMPT, "The dog")
    torch.manual_seed(0)
    expected = ensemble.generate(**inputs, **options)
    torch.manual_seed(0)
    processor = processor_of([STORY, OTHER], [0.6, 0.4])
    assert torch.equal(pairs[0][0].generate(**inputs, **options, logits_processor=[processor]), expected)


@pytest.mark.parametrize("mode", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}])
@pytest.mark.parametrize(
    ("names", "weights", "host_rereads"),
    [
        ([CHARACTERS, STORY], [0.5, 0.5], False),
        *slow(
            ([STORY, CHARACTERS], [0.5, 0.5], True),
            ([CHARACTERS, STORY], [0.5, 0.5], True),
            ([STORY, CHARACTERS, RWKV], [0.5, 0.3, 0.2], True),
        ),
    ],
)
def test_they_write_a_story_together(names, weights, host_rereads, mode):
    """The text is English: nearly all of its words are words of children's stories."""
    corpus = shared_path("data", "tinystories", "tinystories_v1_part.txt").read_text(encoding="utf-8").lower()
    known = set(re.findall(r"[a-z']+", corpus))
    host, tokenizer = real(names[0])
    processor = processor_of(names, weights, host_rereads=host_rereads)
    out = host.generate(**prompt_of(names[0], PROMPT), **mode, max_new_tokens=120, logits_processor=[processor])
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    words = re.findall(r"[a-z']+", text.lower().rsplit(" ", 1)[0])
    assert text.startswith(PROMPT)
    assert len(words) > 20
    assert len(set(words)) > 12
    assert sum(word not in known for word in words) <= 0.05 * len(words), text


@pytest.mark.parametrize("which", [0, 1])
def test_all_weight_on_one(which):
    """Law: with all weight on a member its own text comes out, as far as the host can write it."""
    names = [STORY, CHARACTERS]
    host, tokenizer = real(names[0])
    processor = processor_of(names, [float(k == which) for k in range(2)])
    out = host.generate(**prompt_of(names[0], PROMPT), do_sample=False, max_new_tokens=60, logits_processor=[processor])
    got = tokenizer.decode(out[0], skip_special_tokens=True)
    own, own_tokenizer = real(names[which])
    alone = own.generate(**prompt_of(names[which], PROMPT), do_sample=False, max_new_tokens=60)
    expected = own_tokenizer.decode(alone[0], skip_special_tokens=True)
    shorter = min(len(got), len(expected))
    assert shorter > len(PROMPT) + 40
    assert got[:shorter] == expected[:shorter]


def test_custom_generate_writes_the_same_text():
    """Law: `custom_generate` gives the ensemble's text in the host's ids."""
    pairs = [real(STORY), real(CHARACTERS)]
    ensemble = EnsembleForCausalLM.from_members(pairs, StaticPolicy([0.5, 0.5]))
    inputs = prompt_of(STORY, PROMPT)
    options = {"max_new_tokens": 80, "do_sample": False}
    expected = ensemble.generate(**inputs, **options)
    got = pairs[0][0].generate(**inputs, **options, custom_generate=ensemble.as_custom_generate())
    assert pairs[0][1].decode(got[0], skip_special_tokens=True) == ensemble.tokenizer.decode(
        expected[0], skip_special_tokens=True
    )
