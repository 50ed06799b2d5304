"""A member's log-probabilities of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch

from hf_rlae.members.member import Member
from hf_rlae.members.shared_run import accepted_arguments

MAX_LOGITS = 2**24
"""Maximum number of logits that are converted to fp32 at once."""


@runtime_checkable
class ScoresPrompts(Protocol):
    """A member that scores prompts elsewhere."""

    def score_prompts(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `prompt_logps`."""


@torch.no_grad()
def prompt_logps(member: Member, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probability of every id of a prompt, except the first, given the ids before it.

    Prompts of the same length are read in one forward pass. This needs no padding, so every architecture reads each
    prompt as if it were alone. If a prompt is longer than the member's context, its last ids are read.

    Args:
        member (`Member`): the member that scores the prompts.
        prompts (`Sequence[Sequence[int]]`): the prompts in the member's own ids, n ids each.

    Returns:
        `list[list[float]]`: n - 1 log-probabilities per prompt, in nats; `nan` for ids outside the context.
    """
    if isinstance(member, ScoresPrompts):
        return member.score_prompts(prompts)
    member.prepare()
    limit = member.context_length
    kept = [list(prompt) if limit is None else list(prompt)[-limit:] for prompt in prompts]
    result: list[list[float]] = [[] for _ in prompts]
    order = sorted(range(len(kept)), key=lambda index: len(kept[index]))
    for length, group in groupby(order, key=lambda index: len(kept[index])):
        if length < 2:
            continue
        indices = list(group)
        step = len(indices) if member.recurrence.reads_batches else 1
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            ids = torch.tensor([kept[index] for index in chosen], device=member.device)
            for index, row in zip(chosen, _logps(member, ids).tolist(), strict=True):
                result[index] = row
    return [
        [float("nan")] * (max(len(prompt) - 1, 0) - len(row)) + row for prompt, row in zip(prompts, result, strict=True)
    ]


def _logps(member: Member, ids: torch.Tensor) -> torch.Tensor:
    model: Any = member.model
    arguments: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted_arguments(type(model).forward) else {}
    logits = model(input_ids=ids, return_dict=True, **arguments).logits[:, :-1]
    targets = ids[:, 1:].to(logits.device)
    columns = max(1, MAX_LOGITS // (logits.shape[0] * logits.shape[-1]))
    parts = []
    for start in range(0, logits.shape[1], columns):
        piece = logits[:, start : start + columns].float()
        chosen = piece.gather(-1, targets[:, start : start + columns, None])[..., 0]
        parts.append(chosen - piece.logsumexp(-1))
    return torch.cat(parts, dim=1)
