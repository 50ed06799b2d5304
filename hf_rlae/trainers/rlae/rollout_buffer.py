"""The rollout that is being learned from, and how far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from hf_rlae.trainers.rlae.rollouts import Rollouts
from hf_rlae.trainers.rlae.row_noise import seed_of

_ORDER = 2


@dataclass
class RolloutBuffer:
    """Deals a rollout out in micro-batches: `num_iterations` times all rows, each time in a new order.

    An update takes the micro-batches of `gradient_accumulation_steps` steps, of all processes. The order belongs to
    the rollout and the pass through it, so that processes and resumed runs agree on it.

    Args:
        seed (`int`): of the orders.
        steps (`int`): micro-batches of a process in each pass through a rollout.
        num_iterations (`int`): passes.
        accumulated (`int`): micro-batches of a process in each update.
        num_processes (`int`), process_index (`int`): how many processes share each micro-batch, and which one this is.

    Attributes:
        position (`int`): micro-batches that have been dealt out so far, of all rollouts.
        rollouts (`Rollouts`, *optional*): the newest, of all processes.
    """

    seed: int
    steps: int
    num_iterations: int
    accumulated: int
    num_processes: int = 1
    process_index: int = 0
    position: int = 0
    rollouts: Rollouts | None = None
    _order: tuple[tuple[int, int], list[int]] = field(default=((-1, -1), []), repr=False)

    @property
    def number(self) -> int:
        """Of the rollout that the next micro-batch belongs to, from 0."""
        return self.position // (self.steps * self.num_iterations)

    @property
    def is_due(self) -> bool:
        """Whether a new rollout has to be put in before the next micro-batch."""
        return self.rollouts is None or self.position % (self.steps * self.num_iterations) == 0

    @property
    def is_between_updates(self) -> bool:
        """Whether the next micro-batch begins an update."""
        return self.position % self.accumulated == 0

    def micro_batch(self) -> Rollouts:
        """This process's rows of the next micro-batch."""
        rows = self._rows(self._step, self._step + 1)
        size = len(rows) // self.num_processes
        return self._taken(rows[self.process_index * size : (self.process_index + 1) * size])

    def update(self) -> Rollouts:
        """All rows, of all processes, of the update that the next micro-batch belongs to."""
        first = self._step // self.accumulated * self.accumulated
        return self._taken(self._rows(first, first + self.accumulated))

    @property
    def _step(self) -> int:
        return self.position % self.steps

    def _rows(self, first: int, end: int) -> list[int]:
        assert self.rollouts is not None
        key = (self.number, self.position // self.steps % self.num_iterations)
        if self._order[0] != key:
            generator = torch.Generator().manual_seed(seed_of(self.seed, _ORDER, *key))
            self._order = (key, torch.randperm(len(self.rollouts), generator=generator).tolist())
        size = len(self.rollouts) // self.steps
        return self._order[1][first * size : end * size]

    def _taken(self, rows: list[int]) -> Rollouts:
        assert self.rollouts is not None
        return self.rollouts.select(rows)

    def clear(self) -> None:
        """Begins anew."""
        self.position, self.rollouts, self._order = 0, None, ((-1, -1), [])

    def state(self) -> dict[str, Any]:
        """Plain containers of tensors, to be saved; a rollout that is used up is left out."""
        kept = None if self.is_due or self.rollouts is None else self.rollouts.state()
        return {"position": self.position, "rollouts": kept}

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.clear()
        self.position = state["position"]
        self.rollouts = None if state["rollouts"] is None else Rollouts.from_state(state["rollouts"])
