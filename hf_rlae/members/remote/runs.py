"""The runs of a member elsewhere, in the ensemble's process: they send ids, and get one vector per wanted column."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from hf_rlae.errors import present
from hf_rlae.members.paths import Path, PathOutput
from hf_rlae.members.remote.wire import Columns, NewPath, Outputs, Request, unpacked
from hf_rlae.members.shared_run import ReadsSharedColumns, Scores

if TYPE_CHECKING:
    from hf_rlae.members.remote.remote_member import RemoteMember, Waiting

_Twin = TypeVar("_Twin", bound="_RemoteRun")


class _RemoteRun:
    """A session in the worker of a member. Changes of it are sent with what is read next, in one message.

    Args:
        member (`RemoteMember`): the member.
        opening (`tuple`): how the session begins; see `Request`.
    """

    def __init__(self, member: RemoteMember, opening: tuple[Any, ...]) -> None:
        self.member = member
        self.forward_calls = 0
        self._opening: tuple[Any, ...] | None = opening
        self._changes: list[tuple[Any, ...]] = []
        self._waiting: Waiting | None = None
        self._begin()

    def _begin(self) -> None:
        self.session = self.member.new_session()
        weakref.finalize(self, self.member.ended.append, self.session)

    def _send(self, reads: Columns | tuple[NewPath | None, ...] | None) -> Waiting:
        request = Request(self.member.take_ended(), self.session, self._opening, tuple(self._changes), reads)
        self._opening, self._changes = None, []
        return self.member.call("exchange", request)

    def _received(self, waiting: Waiting) -> tuple[torch.Tensor, torch.Tensor | None]:
        outputs: Outputs = waiting.result()
        self.forward_calls = outputs.forward_calls
        self.member.count_received(outputs)
        device = self.member.device
        hidden = None if outputs.hidden is None else unpacked(outputs.hidden, device)
        return unpacked(outputs.logits, device), hidden

    def _change(self, *change: Any) -> None:
        self._waiting = None  # what is under way is not needed any more; the worker answers in order
        self._changes.append(change)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        self._change("reorder", rows.tolist())

    def reset(self) -> None:
        """Drops everything that was read."""
        self._change("reset")

    def _twin(self: _Twin, how: str, *arguments: Any) -> _Twin:
        """A run whose session begins as a copy of this one; the copy is made now."""
        twin = copy.copy(self)
        twin._opening = ("twin", self.session, tuple(self._changes), how, *arguments)
        self._changes = []
        twin._changes, twin._waiting = [], None
        twin._begin()
        if self._opening is not None:  # nothing has been sent yet
            twin._opening = self._opening
        else:
            twin._send(None)
        return twin

    def __deepcopy__(self: _Twin, memo: dict[int, Any]) -> _Twin:
        return self._twin("fork")


class RemoteSharedRun(_RemoteRun, ReadsSharedColumns):
    """The run of a remote member that shares the tokenizer of the others; it has the interface of `SharedRun`.

    Args:
        member (`RemoteMember`), options: see `new_shared_run`.
    """

    def __init__(self, member: RemoteMember, *options: Any) -> None:
        super().__init__(member, ("columns", *options))
        self._known = 0  # columns that the worker has
        self._knows_mask = False

    def launch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> None:
        """Sends the columns that the worker does not have; `read`, with the same arguments, waits for the outputs."""
        if self._waiting is not None:
            return
        known, total = self._known, input_ids.shape[1]
        mask = attention_mask
        is_rest = mask is not None and self._knows_mask
        columns = Columns(
            input_ids[:, known:].cpu().numpy().astype(np.int32),
            None if mask is None else (mask[:, known:] if is_rest else mask).cpu().numpy().astype(np.int8),
            not is_rest,
            keep,
            hidden,
        )
        self.member.bytes_sent += columns.num_bytes
        self._waiting = self._send(columns)
        self._known, self._knows_mask = total, mask is not None

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> Scores:
        """See `SharedRun.read`."""
        self.launch(input_ids, attention_mask, keep, hidden)
        waiting, self._waiting = present(self._waiting, "the message to the worker"), None
        return self._received(waiting)

    def record(self) -> None:
        """See `SharedRun.record`."""
        self._change("record")

    def crop(self, length: int) -> bool:
        """See `SharedRun.crop`."""
        self._change("crop", length)
        self._known = min(self._known, length)
        return True

    def reset(self) -> None:
        """See `SharedRun.reset`."""
        super().reset()
        self._known, self._knows_mask = 0, False

    def ahead(self, length: int) -> RemoteSharedRun:
        """See `SharedRun.ahead`."""
        twin = self._twin("ahead", length)
        twin._known = min(self._known, length)
        return twin


class RemoteRunner(_RemoteRun):
    """The `Runner` of a remote member whose tokenizer differs.

    Args:
        member (`RemoteMember`), hidden_tokens (`int`, defaults to 0): see `BatchRunner`.
    """

    def __init__(self, member: RemoteMember, hidden_tokens: int = 0) -> None:
        super().__init__(member, ("paths", hidden_tokens))

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """See `Runner`."""
        new = tuple(
            None
            if path is None
            else NewPath(path.keep, path.want, path.settled.length, np.array(path.after(path.keep), dtype=np.int32))
            for path in paths
        )
        self.member.bytes_sent += sum(path.ids.nbytes for path in new if path is not None)
        return PathOutput(*self._received(self._send(new)))

    def ahead(self) -> RemoteRunner:
        """See `Runner`."""
        return self._twin("ahead")
