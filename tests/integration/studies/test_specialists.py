"""The training script: it learns, it repeats itself, and what it writes can be loaded."""

from __future__ import annotations

import io
import random

import pytest
import torch
from rich.console import Console
from torch import nn

from hf_rlae.zoo import SPECIALISTS, load_demo_member
from tests.studies.specialists.lessons import draw_lesson
from tests.studies.specialists.tokenizers import BUILDERS, Segmenter
from tests.studies.specialists.train import (
    SpecialistTraining,
    build_model,
    draw_batches,
    encode_lesson,
    save_member,
    train_member,
)


def trained(name, steps, seed=0):
    settings = SpecialistTraining(steps=steps, batch_size=16, warmup_steps=5)
    return train_member(SPECIALISTS[name], settings, seed, Console(file=io.StringIO()))


def loss_of(model, name):
    specialist = SPECIALISTS[name]
    segmenter = Segmenter(BUILDERS[specialist.tokenizer](0), specialist.tokenizer)
    ids, weights = next(draw_batches(specialist.specialty, segmenter, random.Random("other lessons"), 32))
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return float((losses * weights[:, 1:]).sum() / weights[:, 1:].sum())


@pytest.mark.slow
def test_training_learns():
    name = "multiplication-bytes"
    model, tokenizer = trained(name, 60)
    assert loss_of(model, name) < 0.6 * loss_of(build_model(tokenizer, 0), name)


@pytest.mark.slow
def test_a_seed_gives_the_same_member():
    """Law: the same seed gives the same weights, another seed gives others."""
    (first, _), (second, _), (other, _) = (trained("subtraction-bytes", 3, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_what_is_saved_is_loaded_again(tmp_path):
    name = "addition-characters"
    model, tokenizer = trained(name, 2)
    save_member(model, tokenizer, tmp_path / name)
    loaded = load_demo_member(name, tmp_path)
    for parameter, again in zip(model.parameters(), loaded.model.parameters(), strict=True):
        assert again.dtype == torch.float32
        assert torch.equal(parameter.float(), again)
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.end_ids == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_a_lesson_keeps_its_text_and_its_weights(kind):
    """Law: the ids are the lesson and the end token; the loss leaves out the prompt and what was heard."""
    segmenter = Segmenter(BUILDERS[kind](0), kind)
    tokenizer = segmenter.tokenizer
    rng = random.Random(0)
    for _ in range(20):
        lesson = draw_lesson(rng, "subtraction")
        ids, weights = encode_lesson(lesson, segmenter, rng)
        assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(text for text, _ in lesson)
        assert ids[-1] == tokenizer.eos_token_id
        learned = tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w], skip_special_tokens=True)
        assert learned == "".join(text for text, weight in lesson if weight)
