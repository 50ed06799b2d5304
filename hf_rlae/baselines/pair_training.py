"""Trains a small pairwise ranker on right and wrong answers of the members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from hf_rlae.checks import COUNT, POSITIVE, check_number
from hf_rlae.errors import ConfigError
from hf_rlae.rewards.pair_judges import PairJudge


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt, of which the first is better.

    Attributes:
        prompt: a text, or messages.
        better (`str`), worse (`str`): the answers.
    """

    prompt: Any
    better: str
    worse: str


def answer_pairs(
    prompts: Sequence[Any], answers: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> list[AnswerPair]:
    """All pairs of answers to one prompt with different scores.

    Args:
        prompts (`Sequence`): B prompts.
        answers (`Sequence[Sequence[str]]`), scores (`Sequence[Sequence[float]]`): of each of M members, B answers and
            their scores, such as 1.0 for right ones and 0.0 for wrong ones.

    Example:

    >>> [(pair.better, pair.worse) for pair in answer_pairs(["1+1="], [["2"], ["3"]], [[1.0], [0.0]])]
    [('2', '3')]
    """
    found = []
    for row, prompt in enumerate(prompts):
        own = [(float(score[row]), answer[row]) for score, answer in zip(scores, answers, strict=True)]
        found += [AnswerPair(prompt, one, other) for high, one in own for low, other in own if high > low]
    return found


def train_pair_ranker(
    judge: PairJudge,
    pairs: Sequence[AnswerPair],
    *,
    num_epochs: int = 3,
    batch_size: int = 8,
    learning_rate: float = 2e-5,
    seed: int = 0,
) -> list[float]:
    """Trains the model of a judge with binary cross-entropy; every pair is read in both orders.

    Source: LLM-Blender (arXiv 2306.02561), Sec. 3, for the loss, with one measure of quality. The defaults are ours.

    Args:
        judge (`PairJudge`): with a model of one label, the log-odds that the first answer is better. Its parameters
            change in place; afterwards it is in eval mode.
        pairs (`Sequence[AnswerPair]`): from [`answer_pairs`], of prompts that are not used for reported results.
        num_epochs (`int`, defaults to 3), batch_size (`int`, defaults to 8): the latter in readings, two per pair.
        learning_rate (`float`, defaults to 2e-5): of AdamW, falling linearly to 0.
        seed (`int`, defaults to 0): of the order of the pairs, and of dropout.

    Returns:
        `list[float]`: the mean loss of each epoch.

    Raises:
        ConfigError: no pairs, a model with several labels, or an invalid option.
    """
    check_number("num_epochs", num_epochs, COUNT)
    check_number("batch_size", batch_size, COUNT)
    check_number("learning_rate", learning_rate, POSITIVE)
    if not pairs:
        raise ConfigError("pairs is empty: no prompt has a right and a wrong answer; give answers to more prompts")
    if judge.label is not None:
        raise ConfigError(
            f"the model has {judge.model.config.num_labels} labels; load it with num_labels=1, so that it gives the "
            "log-odds that the first answer is better"
        )
    readings = [(judge.encode(pair.prompt, pair.better, pair.worse), 1.0) for pair in pairs]
    readings += [(judge.encode(pair.prompt, pair.worse, pair.better), 0.0) for pair in pairs]
    steps = num_epochs * -(-len(readings) // batch_size)
    optimizer = torch.optim.AdamW(judge.model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    judge.model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for _ in range(num_epochs):
            order: list[int] = torch.randperm(len(readings), generator=generator).tolist()
            total = 0.0
            for start in range(0, len(readings), batch_size):
                part = [readings[at] for at in order[start : start + batch_size]]
                logits = _logits(judge, [encoded for encoded, _ in part])
                labels = torch.tensor([label for _, label in part], device=logits.device)
                loss = binary_cross_entropy_with_logits(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(part)
            losses.append(total / len(readings))
    judge.model.eval()
    return losses


def _logits(judge: PairJudge, rows: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """The log-odds of rows of ids and segments, in fp32."""
    pad = judge.model.config.get_text_config().pad_token_id
    if pad is None and len({len(ids) for ids, _ in rows}) > 1:
        raise ConfigError("the ranker's config has no pad_token_id, so answers of different lengths cannot be batched")
    columns: dict[str, tuple[list[list[int]], int]] = {
        "input_ids": ([ids for ids, _ in rows], pad or 0),
        "attention_mask": ([[1] * len(ids) for ids, _ in rows], 0),
    }
    if judge.has_types:
        columns["token_type_ids"] = ([types for _, types in rows], 0)
    inputs = {
        name: pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill)
        for name, (values, fill) in columns.items()
    }
    return judge.model(**{name: value.to(judge.model.device) for name, value in inputs.items()}).logits[:, 0].float()
