"""The runs of a member elsewhere, in the process that holds its model: one session per run."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from hf_rlae.errors import InternalError
from hf_rlae.members.paths import Chain, Path, Runner
from hf_rlae.members.remote.wire import Columns, NewPath
from hf_rlae.members.separate_rows import SeparateRowsRun
from hf_rlae.members.shared_run import Scores, SharedRun


class ColumnsSession:
    """The run of a member that shares the tokenizer of the others, and the text that it has been sent.

    Args:
        run (`SharedRun` or `SeparateRowsRun`): reads the text.
        ids, mask (`torch.LongTensor` of shape `(B, L)`, *optional*): the text so far.
    """

    def __init__(
        self,
        run: SharedRun | SeparateRowsRun,
        ids: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        self.run = run
        self.ids = ids
        self.mask = mask

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""
        return self.run.forward_calls

    def read(self, new: Columns) -> Scores:
        """Adds columns to the text and reads them (see `SharedRun.read`)."""
        ids = torch.from_numpy(new.ids.astype("int64"))
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)
        mask = None if new.mask is None else torch.from_numpy(new.mask.astype("int64"))
        is_rest = mask is not None and self.mask is not None and not new.is_whole_mask
        self.mask = torch.cat([self.mask, mask], dim=1) if is_rest else mask  # type: ignore[list-item]
        return self.run.read(self.ids, self.mask, new.keep, new.hidden)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        order = torch.tensor(rows, dtype=torch.long)
        self.run.reorder(order)
        self.ids = None if self.ids is None else self.ids[order]
        self.mask = None if self.mask is None else self.mask[order]

    def record(self) -> None:
        """See `SharedRun.record`."""
        self.run.record()

    def crop(self, length: int) -> None:
        """See `SharedRun.crop`."""
        self.run.crop(length)
        self.ids = None if self.ids is None else self.ids[:, :length]
        self.mask = None if self.mask is None else self.mask[:, :length]

    def reset(self) -> None:
        """See `SharedRun.reset`."""
        self.run.reset()
        self.ids = self.mask = None

    def ahead(self, length: int) -> ColumnsSession:
        """See `SharedRun.ahead`."""
        ids = None if self.ids is None else self.ids[:, :length]
        return ColumnsSession(self.run.ahead(length), ids, None if self.mask is None else self.mask[:, :length])

    def fork(self) -> ColumnsSession:
        """An independent copy."""
        return ColumnsSession(copy.deepcopy(self.run), self.ids, self.mask)


class _Settled(Chain):
    """The number of settled ids, which a `_HeldPath` has among its others."""

    __slots__ = ()

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length


class _HeldPath(Path):
    """A path of which the session holds all ids, so that a step does not copy them."""

    held: list[int]

    @classmethod
    def of(cls, held: list[int], new: NewPath) -> _HeldPath:
        """The path of a row."""
        path = cls(_Settled(new.settled), (), new.keep, new.want)
        object.__setattr__(path, "held", held)
        return path

    @property
    def length(self) -> int:
        """See `Path`."""
        return len(self.held)

    def after(self, position: int) -> tuple[int, ...]:
        """See `Path`."""
        return tuple(self.held[position:])


class PathsSession:
    """The runner of a member whose tokenizer differs, and the ids of its rows.

    Args:
        runner (`Runner`): reads the paths.
        rows (`list[list[int]]`, *optional*): the ids of each row.
    """

    def __init__(self, runner: Runner, rows: list[list[int]] | None = None) -> None:
        self.runner = runner
        self.rows = rows or []

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""
        return self.runner.forward_calls

    def read(self, new: Sequence[NewPath | None]) -> Scores:
        """Reads each row's path (see `Runner.run`)."""
        if not self.rows:
            self.rows = [[] for _ in new]
        paths: list[Path | None] = [None] * len(new)
        for row, path in enumerate(new):
            if path is None:
                continue
            held = self.rows[row]
            if path.keep > len(held):
                raise InternalError(f"a path continues after {path.keep} ids, and the worker has {len(held)}")
            held[path.keep :] = path.ids.tolist()
            paths[row] = _HeldPath.of(held, path)
        output = self.runner.run(paths)
        return output.logits, output.hidden

    def reorder(self, rows: Sequence[int]) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        self.runner.reorder(torch.tensor(rows, dtype=torch.long))
        if self.rows:
            self.rows = [list(self.rows[row]) for row in rows]

    def reset(self) -> None:
        """See `Runner.reset`."""
        self.runner.reset()
        self.rows = []

    def ahead(self) -> PathsSession:
        """See `Runner.ahead`."""
        return PathsSession(self.runner.ahead(), [list(row) for row in self.rows])

    def fork(self) -> PathsSession:
        """An independent copy."""
        return PathsSession(copy.deepcopy(self.runner), [list(row) for row in self.rows])
