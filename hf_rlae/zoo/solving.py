"""Greedy completions of arithmetic chains by a model or an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_rlae.tasks.chains import Question

MAX_NEW_TOKENS = 110
"""More than any solution of three steps needs, in characters."""


def complete(model: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 50) -> list[str]:
    """Greedy completions without special tokens.

    Args:
        model: a causal language model or an ensemble.
        tokenizer: the tokenizer of `model`.
        prompts (`Sequence[str]`): N prompts.
        batch_size (`int`, defaults to 50): prompts per call of `generate`.

    Returns:
        `list[str]`: N completions.
    """
    completions: list[str] = []
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(list(prompts[start : start + batch_size]), return_tensors="pt", padding=True)
        sequences = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        completions += tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions


def accuracy(model: Any, tokenizer: Any, questions: Sequence[Question]) -> float:
    """The share of questions whose greedy completion ends with the right answer (see `complete`)."""
    completions = complete(model, tokenizer, [question.prompt for question in questions])
    return sum(q.is_solved_by(c) for q, c in zip(questions, completions, strict=True)) / len(questions)
