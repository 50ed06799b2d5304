"""What the rows of a batch read, each its own number of ids, and what runs a model on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Chain:
    """The ids of a row that do not change any more: a linked list that rows share.

    Attributes:
        before (`Chain` or `None`), ids (`tuple[int, ...]`): the first ids, and the ids after them.
        length (`int`): total number of ids.
    """

    __slots__ = ("before", "ids", "length")
    length: int

    def __init__(self, before: Chain | None = None, ids: tuple[int, ...] = ()) -> None:
        self.before = before
        self.ids = ids
        self.length = len(ids) + (before.length if before is not None else 0)

    def plus(self, ids: tuple[int, ...]) -> Chain:
        """The chain, extended by `ids`."""
        return Chain(self, ids) if ids else self

    def after(self, position: int) -> tuple[int, ...]:
        """The ids from `position` on; the cost is proportional to their number."""
        parts = []
        link: Chain | None = self
        while link is not None and link.length > position:
            start = link.length - len(link.ids)
            parts.append(link.ids[max(position - start, 0) :])
            link = link.before
        return tuple(i for part in reversed(parts) for i in part)


class Path:
    """The ids that one row reads; immutable.

    Attributes:
        settled (`Chain`): the ids that do not change any more.
        ids (`tuple[int, ...]`): the ids after those.
        keep (`int`): number of first ids that are in the row's cache already.
        want (`int`): number of last ids for which logits are returned.
    """

    __slots__ = ("ids", "keep", "settled", "want")

    def __init__(self, settled: Chain, ids: tuple[int, ...], keep: int, want: int) -> None:
        self.settled = settled
        self.ids = ids
        self.keep = keep
        self.want = want

    @property
    def length(self) -> int:
        """Number of all ids of the row."""
        return self.settled.length + len(self.ids)

    def after(self, position: int) -> tuple[int, ...]:
        """The ids from `position` on."""
        inside = position - self.settled.length
        return self.ids[inside:] if inside >= 0 else self.settled.after(position) + self.ids


def rows_of(paths: Sequence[Path | None]) -> list[int]:
    """The row of each output of the paths."""
    return [row for row, path in enumerate(paths) if path is not None for _ in range(path.want)]


@dataclass(frozen=True)
class PathOutput:
    """A model's outputs after the last `want` ids of each path, row by row; R is the sum of all `want`.

    Attributes:
        logits (`torch.Tensor` of shape `(R, V_m)`): next-token logits.
        hidden (`torch.Tensor` of shape `(R, H_m)` or `None`): hidden states, if they are kept; of shape `(R, 2 H_m)`,
            with the means over several tokens, if policies pool them.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


class Runner(Protocol):
    """Runs one member on ragged rows."""

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """Reads each row's path; rows with `None` do not change."""

    def ahead(self) -> Runner:
        """An independent copy that returns the hidden states of single tokens."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""

    def reset(self) -> None:
        """Drops everything that was read."""


MakeRunner = Callable[[Any, int], Runner]
"""Makes the runner of a member, given its `hidden_tokens`."""
