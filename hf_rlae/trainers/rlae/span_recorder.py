"""The observations and outputs of a policy during a rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_rlae.policies import PolicyModel, PolicyOutput, PolicyState


@dataclass
class SpanRecorder:
    """Takes the place of the policy during a rollout, and records its observations and outputs at every span.

    Args:
        policy (`PolicyModel`): called without gradients.
        num_rows (`int`): N, the number of completions of the rollout.
        seeds_of (`Callable`, *optional*): takes a span and R row numbers, returns R seeds from which actions are drawn;
            `None` for deterministic weights.
        keeps_observations (`bool`, defaults to `True`): whether to record observations.
        dtype (`torch.dtype`, *optional*): of recorded hidden states, if it is smaller than theirs. The policy sees what
            is recorded, so that its outputs are those of the recorded observation.

    Attributes:
        rows (`torch.LongTensor` of shape `(R,)`): the rows that are being generated.
    """

    policy: PolicyModel
    num_rows: int
    seeds_of: Callable[[int, Sequence[int]], Sequence[int]] | None = None
    keeps_observations: bool = True
    dtype: torch.dtype | None = None
    rows: torch.Tensor = field(init=False)
    _rows: list[torch.Tensor] = field(init=False, default_factory=list)
    _observations: list[dict[str, torch.Tensor]] = field(init=False, default_factory=list)
    _outputs: list[PolicyOutput] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.rows = torch.arange(self.num_rows)

    @property
    def observes_members(self) -> bool:
        """See [`MemberObserver`]."""
        return self.policy.config.observes_members

    @property
    def pooled_tokens(self) -> int:
        """See [`MemberObserver`]."""
        return self.policy.config.pooled_tokens

    def __call__(self, state: PolicyState) -> torch.Tensor:
        """The policy's weights, `(R, M)`."""
        observation = {name: self._rounded(name, tensor) for name, tensor in self.policy.observe(state).items()}
        sample: Any = False if self.seeds_of is None else self.seeds_of(len(self._outputs), self.rows.tolist())
        output: PolicyOutput = self.policy(observation, sample=sample)
        self._rows.append(self.rows)
        if self.keeps_observations:
            self._observations.append(observation)
        self._outputs.append(output)
        return output.weights

    def _rounded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        is_smaller = self.dtype is not None and self.dtype.itemsize < tensor.element_size()
        return tensor.to(self.dtype) if is_smaller and name.startswith(("hidden_states_", "lookahead_")) else tensor

    def outputs_of(self, name: str, spans: int, device: torch.device) -> torch.Tensor | None:
        """A field of the policy's outputs.

        Args:
            name (`str`): of `PolicyOutput`.
            spans (`int`): S; outputs of later spans are left out.
            device (`torch.device`): of the result.

        Returns:
            `torch.Tensor` of shape `(N, S, ...)`: 0 in rows that had ended; `None` if the policy gives no such field.
        """
        values = [getattr(output, name) for output in self._outputs[:spans]]
        return None if values[0] is None else self._spread(torch.cat(values), spans).to(device)

    def observations(self, spans: int) -> dict[str, torch.Tensor]:
        """The policy's observations, each of shape `(N, S, ...)`; 0 in rows that had ended; empty if not recorded.

        The recorded ones are dropped, one name after the other, so that memory never holds all of them twice.
        """
        found, kept = {}, self._observations[:spans]
        for name in list(kept[0]) if kept else []:
            together = self.policy.stack([{name: observation.pop(name)} for observation in kept])
            found[name] = self._spread(together[name], spans)
        return found

    def _spread(self, tensor: torch.Tensor, spans: int) -> torch.Tensor:
        rows = torch.cat(self._rows[:spans]).to(tensor.device)
        span = torch.cat([torch.full_like(part, at) for at, part in enumerate(self._rows[:spans])]).to(tensor.device)
        spread = tensor.new_zeros(self.num_rows, spans, *tensor.shape[1:])
        spread[rows, span] = tensor
        return spread
