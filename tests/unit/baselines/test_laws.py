"""Laws of all baselines: one member is that member, copies add nothing, rows of a batch do not meet, costs add up."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, get_baseline, list_baselines
from hf_rlae.baselines import baselines
from tests.support.different_tokenizers import member
from tests.support.ensembles import TEXTS, encode
from tests.support.models import ARCHITECTURES, pair
from tests.support.tiers import slow
from tests.support.tokenizers import LOSSLESS, chatml, instruct, raw_bytes, sentencepiece_bpe

SETTINGS = {
    "best_fixed": {"weights": None},
    "best_member": {"index": 0},
    "pair_ranker": {"judge": lambda prompts, first, second: [0.5] * len(first)},
}
"""What a baseline needs beside its defaults."""

BUILT_IN = [name for name in list_baselines() if baselines[name].__module__.startswith("hf_rlae.")]
TOKENWISE = ["gac", "unite", "deepen", "safe"]
FAST = [*TOKENWISE, "majority_vote", "uniform"]
SAME = [name for name in BUILT_IN if name not in FAST]
"""Baselines that run as one of the others does."""

FEW = {"max_new_tokens": 4, "do_sample": False}
GREEDY = {"max_new_tokens": 9, "do_sample": False}


def made(name: str, members: int = 1):
    settings = dict(SETTINGS.get(name, {}))
    if name == "best_fixed":
        settings["weights"] = [1.0] * members
    return get_baseline(name, **settings)


@cache
def mixed_trio() -> EnsembleForCausalLM:
    """Three tokenizers and three architectures."""
    return EnsembleForCausalLM.from_members(
        [member(), member("gpt2", raw_bytes, 1), member("gemma3", sentencepiece_bpe, 2)]
    )


def own_texts(model, tokenizer, prompts):
    """What transformers' `generate` of a model writes, prompt by prompt."""
    texts = []
    for prompt in prompts:
        inputs = encode(prompt, tokenizer=tokenizer)
        ids = model.generate(**inputs, **GREEDY)[0]
        before, whole = (tokenizer.decode(row, skip_special_tokens=True) for row in (inputs["input_ids"][0], ids))
        texts.append(whole[len(before) :])
    return texts


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(
    ("architecture", "tokenizer"),
    [("llama", "byte_level_bpe"), ("mamba", "sentencepiece_bpe"), *slow(("gemma3", "unigram"), ("gpt2", "raw_bytes"))],
)
def test_one_member_is_that_member(name, architecture, tokenizer):
    """The texts of transformers' own `generate`, at its cost."""
    model, tokenizer = pair(architecture, 3, LOSSLESS[tokenizer]())
    output = made(name).generate([(model, tokenizer)], TEXTS, **GREEDY)
    assert output.texts == own_texts(model, tokenizer, TEXTS)
    assert output.member_tokens[:, 0].tolist() == output.num_tokens.tolist()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_a_member_are_that_member(name, copies):
    one = pair("llama", 4)
    output = made(name, copies).generate([one] * copies, TEXTS, **GREEDY)
    assert output.texts == own_texts(*one, TEXTS)


@pytest.mark.parametrize("name", [*FAST, *slow(*SAME)])
def test_rows_of_a_batch_are_what_they_are_alone(name):
    """With different tokenizers, so that rows are of different lengths for every member."""
    baseline = made(name, 3)
    together = baseline.generate(mixed_trio(), TEXTS[:2], **FEW)
    apart = baseline.generate(mixed_trio(), TEXTS[:2], batch_size=1, **FEW)
    assert together.texts == apart.texts
    assert torch.equal(together.member_tokens, apart.member_tokens)
    assert sum(apart.forward_calls) > sum(together.forward_calls) > 0
    assert together.seconds > 0
    assert together.choices == apart.choices


@pytest.mark.parametrize("name", TOKENWISE)
@pytest.mark.parametrize("tokenizer", [*slow(*LOSSLESS)])
def test_any_tokenizer_beside_another(name, tokenizer):
    members = [pair("llama", 5, LOSSLESS[tokenizer]()), member()]
    output = made(name).generate(members, TEXTS[:2], max_new_tokens=8, do_sample=False)
    assert all(output.texts)


@pytest.mark.parametrize("name", TOKENWISE)
@pytest.mark.parametrize("architecture", [*slow(*ARCHITECTURES)])
def test_any_architecture_beside_another(name, architecture):
    """The cached passes give what passes over the whole text give: rows alone equal rows of a batch."""
    ensemble = EnsembleForCausalLM.from_members([pair(architecture, 6, raw_bytes()), member()])
    together = made(name).generate(ensemble, TEXTS[:2], max_new_tokens=7, do_sample=False)
    apart = made(name).generate(ensemble, TEXTS[:2], batch_size=1, max_new_tokens=7, do_sample=False)
    assert together.texts == apart.texts


@pytest.mark.parametrize("name", BUILT_IN)
def test_chats_are_rendered_for_every_member(name):
    """The same as prompts that are the members' own renderings: here of one member, whose template is applied."""
    chat = [{"role": "user", "content": "The 3 big dogs"}]
    model, tokenizer = pair("llama", 7, chatml())
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(model.generate(rendered, **GREEDY)[0, rendered.shape[1] :], skip_special_tokens=True)
    assert made(name).generate([(model, tokenizer)], [chat], **GREEDY).texts == [expected]
    both = EnsembleForCausalLM.from_members([(model, tokenizer), pair("gpt2", 8, instruct())])
    output = made(name, 2).generate(both, [chat, chat], **GREEDY)
    assert output.texts[0] == output.texts[1]


@pytest.mark.parametrize("name", [*(name for name in FAST if name != "safe"), *slow(*SAME)])
def test_sampling_is_repeatable_and_cold_sampling_is_greedy(name):
    baseline = made(name, 3)
    greedy = baseline.generate(mixed_trio(), TEXTS[:2], max_new_tokens=3, do_sample=False)
    cold = baseline.generate(mixed_trio(), TEXTS[:2], max_new_tokens=3, do_sample=True, top_k=1)
    assert cold.texts == greedy.texts
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(
            baseline.generate(mixed_trio(), TEXTS[:2], max_new_tokens=3, do_sample=True, temperature=1.5, top_k=0).texts
        )
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_text_ends_at_its_end_token_at_a_stop_string_and_at_the_limit(name):
    """`min_new_tokens` holds the end back; the stop string is the last part of the text."""
    model, tokenizer = pair("llama", 4)
    members = [(model, tokenizer), pair("llama", 4)]
    baseline = made(name, 2)
    whole = baseline.generate(members, TEXTS[:1], max_new_tokens=12, do_sample=False)
    assert whole.num_tokens.tolist() == [12]
    stop = whole.texts[0][3:5]
    stopped = baseline.generate(members, TEXTS[:1], max_new_tokens=12, do_sample=False, stop_strings=[stop])
    end = whole.texts[0].index(stop) + len(stop)
    assert whole.texts[0][:end] in stopped.texts[0]
    assert whole.texts[0].startswith(stopped.texts[0])
    assert stopped.num_tokens[0] < 12
