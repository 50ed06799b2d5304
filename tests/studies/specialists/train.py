"""Trains the embedded members: `python -m tests.studies.specialists.train --output DIR [--seed 0]`."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from hf_rlae.zoo.loader import SPECIALISTS, Specialist
from tests.studies.specialists.lessons import Lesson, draw_lesson
from tests.studies.specialists.measure import TABLE_WIDTH, operator_table
from tests.studies.specialists.tokenizers import BUILDERS, Segmenter

_POOL = 8
_STEPS = {"addition": 1400, "subtraction": 1300, "multiplication": 1000}


@dataclass(frozen=True)
class SpecialistTraining:
    """How one member is trained.

    Attributes:
        steps (`int`): updates of the weights.
        batch_size (`int`): lessons an update.
        learning_rate (`float`): the highest; linear warm-up, then cosine to 0.
        warmup_steps (`int`): updates of the warm-up.
        weight_decay (`float`): of matrices.
    """

    steps: int
    batch_size: int = 96
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of about 0.35 M parameters with random weights."""
    torch.manual_seed(seed)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.06,
        tie_word_embeddings=True,
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def encode_lesson(lesson: Lesson, segmenter: Segmenter, rng: random.Random) -> tuple[list[int], list[float]]:
    """The ids of a lesson and the loss weight of each; every second lesson has its segmentation varied."""
    tokenizer = segmenter.tokenizer
    prompt = lesson[0][0]
    ids = ([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []) + segmenter(prompt)
    weights = [0.0] * len(ids)
    varied = rng if rng.random() < 0.5 else None
    for text, weight in lesson[1:]:
        part = segmenter(text, varied)
        ids += part
        weights += [weight] * len(part)
    return [*ids, tokenizer.eos_token_id], [*weights, 1.0]


def draw_batches(
    specialty: str, segmenter: Segmenter, rng: random.Random, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of lessons of about equal length: ids `(B, L)`, padded on the right, and weights `(B, L)`."""
    pad = segmenter.tokenizer.pad_token_id
    while True:
        lessons = [encode_lesson(draw_lesson(rng, specialty), segmenter, rng) for _ in range(_POOL * batch_size)]
        lessons.sort(key=lambda lesson: len(lesson[0]))
        starts = list(range(0, len(lessons), batch_size))
        rng.shuffle(starts)
        for start in starts:
            batch = lessons[start : start + batch_size]
            longest = len(batch[-1][0])
            ids = [ids + [pad] * (longest - len(ids)) for ids, _ in batch]
            weights = [weights + [0.0] * (longest - len(weights)) for _, weights in batch]
            yield torch.tensor(ids), torch.tensor(weights)


def train_member(
    specialist: Specialist, settings: SpecialistTraining, seed: int, console: Console
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Trains one specialist from random weights; the same seed gives the same member on the same machine."""
    tokenizer = BUILDERS[specialist.tokenizer](seed)
    model = build_model(tokenizer, seed).train()
    rng = random.Random(f"lessons {specialist.name} {seed}")
    batches = draw_batches(specialist.specialty, Segmenter(tokenizer, specialist.tokenizer), rng, settings.batch_size)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    started = time.perf_counter()
    running = 0.0
    for step in range(1, settings.steps + 1):
        ids, weights = next(batches)
        logits = model(ids[:, :-1], use_cache=False).logits
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        if step % 100 == 0 or step == settings.steps:
            seconds = time.perf_counter() - started
            console.print(f"{specialist.name}: step {step}/{settings.steps}, loss {running:.4f}, {seconds:.0f} s")
    return model.eval(), tokenizer


def _rate(step: int, settings: SpecialistTraining) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def save_member(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a member: fp16 weights, and a config that has them loaded in fp32."""
    model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read


def train_and_save(name: str, steps: int | None, seed: int, output: Path) -> str:
    """Trains the member `name` on one thread and writes it into its folder under `output`."""
    torch.set_num_threads(1)
    disable_progress_bar()
    settings = SpecialistTraining(steps=steps or _STEPS[SPECIALISTS[name].specialty])
    model, tokenizer = train_member(SPECIALISTS[name], settings, seed, Console(soft_wrap=True))
    save_member(model, tokenizer, output / name)
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all members, or those that are named, and prints what they get right."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.specialists.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder that gets one folder a member")
    parser.add_argument("--seed", type=int, default=0, help="of weights, lessons and tokenizers")
    parser.add_argument("--steps", type=int, default=None, help="updates a member, if not the usual")
    parser.add_argument("--members", nargs="+", choices=sorted(SPECIALISTS), default=list(SPECIALISTS))
    parser.add_argument("--jobs", type=int, default=2, help="members at a time, one thread each")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(train_and_save, name, options.steps, options.seed, options.output) for name in options.members
        ]
        for job in jobs:
            job.result()
    torch.set_num_threads(1)
    disable_progress_bar()
    console = Console(width=TABLE_WIDTH)
    console.print(f"trained {len(options.members)} members in {(time.perf_counter() - started) / 60:.1f} minutes")
    console.print(operator_table(options.members, options.output))


if __name__ == "__main__":
    main()
