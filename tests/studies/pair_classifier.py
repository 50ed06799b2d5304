"""A small classifier that is trained to judge two answers to one question: the judge of a pairwise reward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.policies import StaticPolicy
from hf_rlae.rewards.classifiers import classify
from hf_rlae.rewards.pair_judges import PairJudge
from hf_rlae.tasks.chains import Question
from hf_rlae.zoo import load_demo_member
from hf_rlae.zoo.solving import complete

_BATCH = 64
_RATE = 1e-3

Labelled = tuple[str, str, str, float]
"""A prompt, two answers, and 1 if the first is the right one, else 0."""


def trained_judge(
    members: Sequence[Any], questions: Sequence[Question], held_out: Sequence[Question], seed: int, epochs: int
) -> tuple[BertForSequenceClassification, Any, float]:
    """Two layers that read characters, trained on what each member alone answers: a right answer beside a wrong one.

    Args:
        members: whose answers are judged.
        questions, held_out (`Sequence[Question]`): to train on, and to measure the judge.
        seed (`int`): of its parameters and the order of the pairs.
        epochs (`int`): passes over the pairs.

    Returns:
        the model, its tokenizer, and its share of held-out pairs, in both orders, that it judges right.
    """
    tokenizer = load_demo_member("addition-characters").tokenizer
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            num_labels=1,
        )
    )
    judge = PairJudge(model, tokenizer)
    rows = _read(judge, labelled_pairs(members, questions))
    rng, total = random.Random(seed), epochs * -(-len(rows) // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=total)
    for _ in range(epochs):
        rng.shuffle(rows)
        for part in _batches(rows):
            logits = model.train()(**_padded([ids for ids, _ in part], tokenizer.pad_token_id)).logits[:, 0]
            labels = torch.tensor([label for _, label in part])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    unseen = _read(judge, labelled_pairs(members, held_out))
    logits = torch.cat([classify(model, [ids for ids, _ in part]) for part in _batches(unseen)])[:, 0]
    labels = torch.tensor([label for _, label in unseen])
    return model, tokenizer, float(((logits > 0) == (labels > 0.5)).float().mean())


def _read(judge: PairJudge, pairs: Sequence[Labelled]) -> list[tuple[list[int], float]]:
    """What the judge reads of each pair, and its label."""
    return [(judge.encode(prompt, first, second)[0], label) for prompt, first, second, label in pairs]


def _batches(rows: Sequence[Any]) -> list[Sequence[Any]]:
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


def _padded(rows: Sequence[list[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


def labelled_pairs(members: Sequence[Any], questions: Sequence[Question]) -> list[Labelled]:
    """The right answers of members to questions beside the wrong ones of others, in both orders."""
    answers = []
    for place in range(len(members)):
        weights = [float(place == index) for index in range(len(members))]
        ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy(weights), span_length=8)
        prompts = [question.prompt for question in questions]
        answers.append(complete(ensemble, ensemble.tokenizer, prompts, batch_size=200))
    found: list[Labelled] = []
    for question, *texts in zip(questions, *answers, strict=True):
        for good in {text for text in texts if question.is_solved_by(text)}:
            for bad in sorted({text for text in texts if not question.is_solved_by(text)}):
                found += [(question.prompt, good, bad, 1.0), (question.prompt, bad, good, 0.0)]
    return found
