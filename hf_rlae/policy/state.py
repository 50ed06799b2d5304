"""What a policy is asked about: the text and the members at the first token of a span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class MemberObservation:
    """What one member shows at the position whose next token is chosen.

    Attributes:
        logits (`torch.Tensor` of shape `(B, V_m)`): the member's logits, in its own vocabulary and dtype.
        hidden (`torch.Tensor` of shape `(B, H_m)` or `None`): the input of its language-model head.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


@dataclass(frozen=True)
class PolicyOutput:
    """A policy's answer with what its training needs.

    Attributes:
        weights (`torch.Tensor` of shape `(B, M)`): each row is a point on the simplex.
        actions (`torch.Tensor`, *optional*): what was drawn, before it became weights.
        log_probs (`torch.Tensor`, *optional*): its log-density in nats.
        values (`torch.Tensor` of shape `(B,)`, *optional*): the critic's estimate.
    """

    weights: torch.Tensor
    actions: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    values: torch.Tensor | None = None


class PolicyState:
    """The state of all rows at a span's first token. Everything is computed when it is first read.

    Args:
        num_members (`int`): M.
        span_index (`torch.LongTensor` of shape `(B,)`): how many spans each row has finished.
        device (`torch.device`): where weights are wanted.
        read_text (callable): returns the prompt and the text so far of every row.
        observe (callable): returns one `MemberObservation` per member; runs the members if need be.

    Attributes:
        text (`list[str]`): prompt and text so far, one a row.
        observations (`list[MemberObservation]`): one a member.
        hidden_states (`list[torch.Tensor]`): last hidden states, `(B, H_m)` each.
        entropies (`torch.FloatTensor` of shape `(B, M)`): of the members' next-token distributions, in nats.
        margins (`torch.FloatTensor` of shape `(B, M)`): log-probability of the best token less the second's.
        top_logps (`torch.FloatTensor` of shape `(B, M)`): log-probability of the best token.
    """

    def __init__(
        self,
        num_members: int,
        span_index: torch.Tensor,
        device: torch.device,
        read_text: Callable[[], list[str]],
        observe: Callable[[], Sequence[MemberObservation]],
    ) -> None:
        self.num_members = num_members
        self.span_index = span_index
        self.device = device
        self._read_text = read_text
        self._observe = observe

    @property
    def batch_size(self) -> int:
        """Number of rows, B."""
        return int(self.span_index.shape[0])

    @cached_property
    def text(self) -> list[str]:
        return self._read_text()

    @cached_property
    def observations(self) -> list[MemberObservation]:
        return list(self._observe())

    @cached_property
    def hidden_states(self) -> list[torch.Tensor | None]:
        return [observation.hidden for observation in self.observations]

    @cached_property
    def entropies(self) -> torch.Tensor:
        columns = []
        for observation in self.observations:
            logps = observation.logits.float().log_softmax(-1)
            columns.append(-(logps.exp() * logps.masked_fill(logps == -torch.inf, 0.0)).sum(-1))
        return torch.stack([column.to(self.device) for column in columns], dim=1)

    @cached_property
    def _best_two(self) -> tuple[torch.Tensor, torch.Tensor]:
        tops, margins = [], []
        for observation in self.observations:
            logits = observation.logits.float()
            best = logits.topk(2, dim=-1).values
            tops.append((best[:, 0] - logits.logsumexp(-1)).to(self.device))
            margins.append((best[:, 0] - best[:, 1]).to(self.device))
        return torch.stack(tops, dim=1), torch.stack(margins, dim=1)

    @property
    def top_logps(self) -> torch.Tensor:
        return self._best_two[0]

    @property
    def margins(self) -> torch.Tensor:
        return self._best_two[1]


@runtime_checkable
class Policy(Protocol):
    """Anything that is called with a `PolicyState` and returns weights of shape `(B, M)`."""

    def __call__(self, state: PolicyState, /) -> torch.Tensor | PolicyOutput | Any: ...
