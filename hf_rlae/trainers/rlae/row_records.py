"""What reports need of completions: a few numbers and texts per row, which all processes exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from hf_rlae.errors import present
from hf_rlae.objectives.mixture import weight_entropies
from hf_rlae.trainers.rlae.rollouts import Rollouts


@dataclass(frozen=True)
class RowRecords:
    """N completions as reports see them. Axes: N rows, M members.

    Attributes:
        lengths (`torch.LongTensor` of shape `(N,)`): in tokens of the union vocabulary.
        is_ended (`torch.BoolTensor` of shape `(N,)`): whether a completion ended by itself.
        num_spans (`torch.LongTensor` of shape `(N,)`): number of spans.
        weights (`torch.DoubleTensor` of shape `(N, M)`): sums of the weights over spans.
        entropies (`torch.DoubleTensor` of shape `(N,)`): sums of the entropies of the weights over spans, in nats.
        member_tokens (`torch.LongTensor` of shape `(N, M)`): see `count_member_tokens`.
        advantages (`torch.FloatTensor` of shape `(N,)`): means over spans; NaN where there are none.
        texts (`list[dict]`): `prompt`, `completion` and a text of the `weights`; empty if they are not logged.
    """

    lengths: torch.Tensor
    is_ended: torch.Tensor
    num_spans: torch.Tensor
    weights: torch.Tensor
    entropies: torch.Tensor
    member_tokens: torch.Tensor
    advantages: torch.Tensor
    texts: list[dict[str, Any]]

    @classmethod
    def of(cls, rollouts: Rollouts, text_names: Sequence[str] | None = None) -> RowRecords:
        """The records of rollouts.

        Args:
            rollouts (`Rollouts`): N rows.
            text_names (`Sequence[str]`, *optional*): the members' names in texts; `None` for records without texts.
        """
        mask, weights = rollouts.span_mask, rollouts.weights
        tensors = {
            "lengths": rollouts.completion_mask.sum(1),
            "is_ended": rollouts.is_ended,
            "num_spans": mask.sum(1),
            "weights": torch.where(mask[..., None], weights, 0.0).double().sum(1),
            "entropies": torch.where(mask, weight_entropies(weights).double(), 0.0).sum(1),
            "member_tokens": present(rollouts.member_tokens, "the member-tokens of a rollout").sum(1),
            "advantages": _advantages(rollouts),
        }
        texts = [] if text_names is None else _texts(rollouts, text_names)
        return cls(**{name: tensor.cpu() for name, tensor in tensors.items()}, texts=texts)

    def __len__(self) -> int:
        return len(self.lengths)

    def first(self, count: int) -> RowRecords:
        """The first rows."""
        return RowRecords(*(getattr(self, entry.name)[:count] for entry in fields(self)))


def joined(parts: Sequence[RowRecords]) -> RowRecords:
    """All rows of several records."""
    values = {entry.name: [getattr(part, entry.name) for part in parts] for entry in fields(RowRecords)}
    texts = [text for part in values.pop("texts") for text in part]
    return RowRecords(**{name: torch.cat(tensors) for name, tensors in values.items()}, texts=texts)


def _advantages(rollouts: Rollouts) -> torch.Tensor:
    advantages, mask = rollouts.advantages, rollouts.span_mask
    if advantages is None:
        return torch.full((len(rollouts),), torch.nan)
    if advantages.dim() == 2:
        advantages = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
    return advantages


def _texts(rollouts: Rollouts, names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per completion; its weights have a line per member, with the weights of all spans."""
    texts = []
    rows = zip(rollouts.prompts, rollouts.completions, rollouts.weights, rollouts.span_mask, strict=True)
    for prompt, completion, weights, mask in rows:
        per_member = zip(names, weights[mask].T.tolist(), strict=True)
        lines = [f"{name} " + " ".join(f"{w:.2f}" for w in values) for name, values in per_member]
        texts.append({"prompt": prompt, "completion": completion, "weights": "\n".join(lines)})
    return texts
