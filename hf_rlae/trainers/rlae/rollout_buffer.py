"""The rollout in use, and how much of it has been used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.errors import present
from hf_rlae.trainers.rlae.rollouts import Rollouts
from hf_rlae.trainers.rlae.row_noise import seed_of

_ORDER = 2


@dataclass
class RolloutBuffer:
    """Splits a rollout into micro-batches: all rows `num_iterations` times, each time in a new order.

    An update takes the micro-batches of `gradient_accumulation_steps` steps, of all processes. The order depends on
    the rollout and the pass through it alone, so that it is the same in all processes and resumed runs.

    Args:
        seed (`int`): of the orders.
        steps (`int`): micro-batches per process in each pass through a rollout.
        num_iterations (`int`): passes.
        accumulated (`int`): micro-batches per process in each update.
        num_processes (`int`), process_index (`int`): number of processes that share each micro-batch, and
            the index of this one.

    Attributes:
        position (`int`): micro-batches used so far, of all rollouts.
        rollouts (`Rollouts`, *optional*): the newest one, of all processes.
    """

    seed: int
    steps: int
    num_iterations: int
    accumulated: int
    num_processes: int = 1
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
        """This process's rows of the next micro-batch."""
        rows = self._rows(self._step, self._step + 1)
        size = len(rows) // self.num_processes
        return self._select(rows[self.process_index * size : (self.process_index + 1) * size])

    def update(self) -> Rollouts:
        """All rows, of all processes, of the update that the next micro-batch belongs to."""
        first = self._step // self.accumulated * self.accumulated
        return self._select(self._rows(first, first + self.accumulated))

    @property
    def _step(self) -> int:
        return self.position % self.steps

    def _rows(self, first: int, end: int) -> list[int]:
        rows = len(present(self.rollouts, "the rollout"))
        seed = seed_of(self.seed, _ORDER, self.number, self.position // self.steps % self.num_iterations)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
        size = rows // self.steps
        return order[first * size : end * size]

    def _select(self, rows: list[int]) -> Rollouts:
        return present(self.rollouts, "the rollout").select(rows)

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
