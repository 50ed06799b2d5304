"""A base that can use a reference: a tiny Llama that has read sums, alone and with other answers before them.

It answers `12+34=` and, after references, `12+34=46`, a new line and `12+34=`. It is stopped early, so that it is often
wrong alone, often right after a right reference, and often misled by a wrong one.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_rlae.errors import CheckpointError
from hf_rlae.files import write_whole

PAD, END = "<pad>", "</s>"
_CHARACTERS = [*"0123456789", "+", "=", "\n"]

NUMBERS = 100
"""Sums are of two whole numbers below it."""

NUM_HELD_OUT, NUM_TRAINING = 512, 2000
"""Questions for evaluations, which are never trained on, and those that agents train on."""

ANSWER_TOKENS = 5
"""Three digits and an end are enough; a longer answer is wrong."""


@dataclass(frozen=True)
class Pretraining:
    """How the base is trained.

    Attributes:
        seed (`int`): of the split of questions, the weights and the texts.
        hidden_size (`int`), num_layers (`int`): of the Llama.
        steps (`int`), batch_size (`int`), learning_rate (`float`): linear warm-up in 50 steps, then cosine to 0.
        references (`tuple[float, ...]`): shares of the texts with 0, 1, 2, ... references.
        right (`float`): share of right references.
    """

    seed: int = 0
    hidden_size: int = 64
    num_layers: int = 2
    steps: int = 340
    batch_size: int = 256
    learning_rate: float = 3e-3
    references: tuple[float, ...] = (0.4, 0.45, 0.15)
    right: float = 0.85


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character.

    Example:

    >>> build_tokenizer().decode(build_tokenizer()("7+5=12").input_ids)
    '7+5=12'
    """
    vocab = {token: i for i, token in enumerate([PAD, END, *_CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: Pretraining, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(settings.seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.06,
        tie_word_embeddings=True,
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model


# -- questions -------------------------------------------------------------------------------------------------


def read_references(prompt: str, answers: Sequence[str]) -> str:
    r"""The prompt of an agent that reads earlier answers: the question with each of them, then the question again.

    Args:
        prompt (`str`): a question.
        answers (`Sequence[str]`): the earliest first.

    Example:

    >>> read_references("7+5=", ["12", "13"])
    '7+5=12\n7+5=13\n7+5='
    """
    return "".join(f"{prompt}{answer}\n" for answer in answers) + prompt


def split_questions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of numbers, each once: those that may be trained on and those held out, of shape `(N, 2)`."""
    order = np.random.default_rng(seed).permutation(NUMBERS * NUMBERS)
    pairs = np.stack([order // NUMBERS, order % NUMBERS], axis=1)
    return pairs[NUM_HELD_OUT:], pairs[:NUM_HELD_OUT]


def questions(pairs: np.ndarray) -> Dataset:
    """A dataset with the columns `prompt` and `answer`."""
    rows = pairs.tolist()
    return Dataset.from_dict({"prompt": [f"{a}+{b}=" for a, b in rows], "answer": [str(a + b) for a, b in rows]})


def right_answers(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """The reward: 1 for the right sum, 0 for anything else.

    Example:

    >>> right_answers(["12", "12 "], ["12", "12"])
    [1.0, 0.0]
    """
    return [float(own == right) for own, right in zip(completions, answer, strict=True)]


def wrong_sum(rng: np.random.Generator, right: int) -> int:
    """A near miss, a slip of a carry, or any number."""
    kind = rng.integers(3)
    if kind == 2:
        wrong = int(rng.integers(2 * NUMBERS - 1))
    else:
        wrong = right + int(rng.choice(([-10, -1, 1, 10], [-20, -11, -9, -2, 2, 9, 11, 20])[kind]))
    return wrong if 0 <= wrong != right else right + 1


# -- training --------------------------------------------------------------------------------------------------


def _batch(rng: np.random.Generator, pairs: np.ndarray, settings: Pretraining, tokenizer: Any) -> tuple[Any, Any]:
    """Ids `(B, L)`, padded on the left, and 1.0 where a token of the answer counts."""
    texts, lengths = [], []
    chosen = pairs[rng.integers(len(pairs), size=settings.batch_size)].tolist()
    counts = rng.choice(len(settings.references), size=settings.batch_size, p=settings.references)
    for (a, b), count in zip(chosen, counts, strict=True):
        given = [a + b if rng.random() < settings.right else wrong_sum(rng, a + b) for _ in range(count)]
        texts.append(read_references(f"{a}+{b}=", [str(one) for one in given]) + f"{a + b}{END}")
        lengths.append(len(str(a + b)) + 1)
    ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
    return ids, _last(lengths, ids.shape[1]).float()


def _last(lengths: Sequence[int], width: int) -> torch.Tensor:
    """`True` at the last tokens of each row, of shape `(B, width)`."""
    return torch.arange(width)[None] >= width - torch.tensor(lengths)[:, None]


def answer_logps(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
    """The log-probability of each answer with its end after its prompt, of shape `(B,)`, in nats."""
    texts = [prompt + answer + END for prompt, answer in zip(prompts, answers, strict=True)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    keep = max(len(answer) for answer in answers) + 2
    logits = model(
        inputs["input_ids"], attention_mask=mask, position_ids=positions, logits_to_keep=min(keep, mask.shape[1])
    ).logits
    labels = inputs["input_ids"][:, -logits.shape[1] :][:, 1:]
    logps = logits[:, :-1].float().log_softmax(-1).gather(2, labels[..., None])[..., 0]
    return (logps * _last([len(answer) + 1 for answer in answers], labels.shape[1])).sum(1)


def pretrain(settings: Pretraining) -> LlamaForCausalLM:
    """Trains the base from random weights; the same seed gives the same base on the same machine."""
    tokenizer = build_tokenizer()
    model = build_model(settings, tokenizer).train()
    pairs, _ = split_questions(settings.seed)
    rng = np.random.default_rng([settings.seed, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 50, 1.0) * 0.5 * (1 + math.cos(math.pi * step / settings.steps)),
    )
    for _ in range(settings.steps):
        ids, counts = _batch(rng, pairs, settings, tokenizer)
        mask = (ids != tokenizer.pad_token_id).int()
        logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * counts[:, 1:]).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def describe(model: LlamaForCausalLM, seed: int) -> dict[str, float]:
    """The mean probability of the right answer to held-out questions: alone, after a right and a wrong reference."""
    tokenizer, rng = build_tokenizer(), np.random.default_rng([seed, 2])
    held_out = questions(split_questions(seed)[1])
    prompts, answers = list(held_out["prompt"]), list(held_out["answer"])
    wrong = [str(wrong_sum(rng, int(answer))) for answer in answers]
    asked = {
        "alone": prompts,
        "after a right reference": [read_references(p, [a]) for p, a in zip(prompts, answers, strict=True)],
        "after a wrong reference": [read_references(p, [w]) for p, w in zip(prompts, wrong, strict=True)],
    }
    return {
        name: round(float(answer_logps(model, tokenizer, given, answers).exp().mean()), 4)
        for name, given in asked.items()
    }


def digest_of(model: LlamaForCausalLM) -> str:
    """A digest of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def prepare_base(folder: Path, settings: Pretraining) -> dict[str, Any]:
    """Trains the base, if it is not in the folder yet, and says what it is.

    Args:
        folder (`Path`): for the weights, in `weights`, and what is known of them, in `base.json`. The weights may be
            deleted; they are then trained again, and have to be the same.
        settings (`Pretraining`): of the base.

    Raises:
        CheckpointError: the weights are not those that `base.json` describes: runs on them would not be comparable.
    """
    known, weights = folder / "base.json", folder / "weights"
    if not (weights / "model.safetensors").exists():
        began = time.process_time()
        model = pretrain(settings)
        seconds = round(time.process_time() - began, 1)
        told = {"digest": digest_of(model), **describe(model, settings.seed), "cpu_seconds": seconds}
        if not known.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(known, json.dumps(told, indent=1) + "\n")
        _check_digest(known, told["digest"])
        model.save_pretrained(weights)
    found = json.loads(known.read_text(encoding="utf-8"))
    _check_digest(known, digest_of(load_base(folder)))
    return dict(found)


def _check_digest(known: Path, digest: str) -> None:
    expected = json.loads(known.read_text(encoding="utf-8"))["digest"]
    if digest != expected:
        raise CheckpointError(
            f"{known} describes other weights than those of the base here (training is repeatable on one machine with "
            "one version of PyTorch only); copy the folder weights of the first runs, or give another folder"
        )


def load_base(folder: Path) -> LlamaForCausalLM:
    """The base that [`prepare_base`] left in a folder."""
    return LlamaForCausalLM.from_pretrained(folder / "weights", dtype=torch.float32)
