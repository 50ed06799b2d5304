"""The rollout in use, and how much of it has been used."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.errors import present
from hf_rlae.trainers.rlae.rollouts import Rollouts
from hf_rlae.trainers.rlae.row_noise import seed_of

_ORDER = 2


@dataclass
class RolloutBuffer:
    """Splits this process's rows of a rollout into micro-batches: all of them `num_iterations` times, in new orders.

    An update takes the micro-batches of `gradient_accumulation_steps` steps, of all processes. Rows stay in the process
    that generated them. An order depends on the rollout, the pass through it and the process alone, so that it is the
    same in resumed runs.

    Args:
        seed (`int`): of the orders.
        steps (`int`): micro-batches in each pass through a rollout.
        num_iterations (`int`): passes.
        accumulated (`int`): micro-batches in each update.
        process_index (`int`): the index of this process.

    Attributes:
        position (`int`): micro-batches used so far, of all rollouts.
        rollouts (`Rollouts`, *optional*): this process's rows of the newest one.
    """

    seed: int
    steps: int
    num_iterations: int
    accumulated: int
    process_index: int = 0
    position: int = 0
    rollouts: Rollouts | None = None

    @property
    def number(self) -> int:
        """The number of the rollout that the next micro-batch belongs to, from 0."""
        return self.position // (self.steps * self.num_iterations)

    @property
    def is_due(self) -> bool:
        """Whether the next micro-batch needs a new rollout."""
        return self.rollouts is None or self.position % (self.steps * self.num_iterations) == 0

    @property
    def is_between_updates(self) -> bool:
        """Whether the next micro-batch begins an update."""
        return self.position % self.accumulated == 0

    def micro_batch(self) -> Rollouts:
        """The rows of the next micro-batch."""
        return present(self.rollouts, "the rollout").select(self._rows(self._step, self._step + 1))

    def update(self, names: Container[str]) -> dict[str, torch.Tensor]:
        """The tensors with these names, of all rows of the update that the next micro-batch belongs to.

        Observations, by far the largest part, are not copied.
        """
        first = self._step // self.accumulated * self.accumulated
        rows = self._rows(first, first + self.accumulated)
        tensors = present(self.rollouts, "the rollout").tensors()
        return {name: tensor[rows] for name, tensor in tensors.items() if name in names}

    @property
    def _step(self) -> int:
        return self.position % self.steps

    def _rows(self, first: int, end: int) -> list[int]:
        rows = len(present(self.rollouts, "the rollout"))
        place = (self.number, self.position // self.steps % self.num_iterations)
        own = (self.process_index,) if self.process_index else ()  # the first process has the order of a process alone
        seed = seed_of(self.seed, _ORDER, *place, *own)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
        size = rows // self.steps
        return order[first * size : end * size]

    def clear(self) -> None:
        """Forgets the rollout and starts from the beginning."""
        self.position, self.rollouts = 0, None

    def state(self) -> dict[str, Any]:
        """Plain containers to be saved; a rollout that is used up is left out."""
        kept = None if self.is_due or self.rollouts is None else self.rollouts.state()
        return {"position": self.position, "rollouts": kept}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.position = state["position"]
        self.rollouts = state["rollouts"] and Rollouts(**state["rollouts"])
