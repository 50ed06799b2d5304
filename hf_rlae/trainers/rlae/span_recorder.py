"""What a policy saw and said while an ensemble wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_rlae.policies import PolicyOutput, PolicyState


@dataclass
class SpanRecorder:
    """Stands in for the policy while texts are written, and keeps what it saw and said at every span.

    Args:
        policy (`PolicyModel`): asked without gradients.
        num_rows (`int`): N, of the texts at the beginning.
        seeds_of (callable, *optional*): gives the seeds of a span and some rows, one a row, from which actions are
            drawn; `None` for the deterministic weights.

    Attributes:
        rows (`torch.LongTensor` of shape `(R,)`): which texts are being written.
    """

    policy: Any
    num_rows: int
    seeds_of: Callable[[int, Sequence[int]], Sequence[int]] | None = None
    rows: torch.Tensor = field(init=False)
    _rows: list[torch.Tensor] = field(init=False, default_factory=list)
    _observations: list[dict[str, torch.Tensor]] = field(init=False, default_factory=list)
    _outputs: list[PolicyOutput] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.rows = torch.arange(self.num_rows)

    @property
    def observes_members(self) -> bool:
        """Whether members have to be run for the policy."""
        return self.policy.config.observes_members

    @property
    def pooled_tokens(self) -> int:
        """Over how many of each member's newest tokens hidden states are averaged for the policy."""
        return self.policy.config.pooled_tokens

    def __call__(self, state: PolicyState) -> torch.Tensor:
        """The policy's weights, `(R, M)`."""
        seen = self.policy.observe(state)
        sample: Any = False if self.seeds_of is None else self.seeds_of(len(self._outputs), self.rows.tolist())
        output = self.policy(seen, sample=sample)
        self._rows.append(self.rows)
        self._observations.append(seen)
        self._outputs.append(output)
        return output.weights

    def said(self, name: str, spans: int, device: torch.device) -> torch.Tensor | None:
        """A field of the policy's outputs, of shape `(N, S, ...)`; 0 for texts that had ended, `None` if there is none.

        Args:
            name (`str`): of `PolicyOutput`.
            spans (`int`): S; what was said after them is left out.
            device (`torch.device`): where it is wanted.
        """
        values = [getattr(output, name) for output in self._outputs[:spans]]
        return None if values[0] is None else self._spread(torch.cat(values), spans).to(device)

    def seen(self, spans: int) -> dict[str, torch.Tensor]:
        """What the policy saw, each of shape `(N, S, ...)`; 0 for texts that had ended."""
        together = self.policy.stack(self._observations[:spans])
        return {name: self._spread(tensor, spans) for name, tensor in together.items()}

    def _spread(self, tensor: torch.Tensor, spans: int) -> torch.Tensor:
        rows = torch.cat(self._rows[:spans]).to(tensor.device)
        span = torch.cat([torch.full_like(part, at) for at, part in enumerate(self._rows[:spans])]).to(tensor.device)
        spread = tensor.new_zeros(self.num_rows, spans, *tensor.shape[1:])
        spread[rows, span] = tensor
        return spread
