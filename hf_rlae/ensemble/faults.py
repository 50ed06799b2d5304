"""Finds members whose logits are NaN or infinite while a text is generated."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from hf_rlae.errors import MemberLostError, NonFiniteError, present
from hf_rlae.members import Member

logger = logging.getLogger(__name__)

ACTIONS = ("raise", "drop")

_MOST_UNREAD = 256
"""The device is waited for after this number of unread values at the latest. Source: ours."""


class MemberFaults:
    """Looks at one number per row and forward pass of each member, in one `generate` call.

    The number (the log of the sum of exponentials, or the largest logit) is finite exactly if the member's distribution
    is. Numbers are noted when members run. On a CPU they are read before the members are mixed. Elsewhere that would
    wait for the device at every token, so they are read when a span begins (the weights are read then) and when the
    call ends; `covered` keeps sampling safe until then. To drop members, numbers are always read at once.

    Source: ours.

    Args:
        members (`Sequence[Member]`): the members.
        start (`int`): the column of the first completion token.
        repeats (`int`, defaults to 1): number of rows per prompt, for beams and samples.
        drops (`bool`, defaults to `False`): whether a member that fails is left out of the row instead.
        drops_lost (`bool`, defaults to `False`): whether the call goes on without a remote member that is lost.

    Attributes:
        dropped (`set[int]`): the members that were left out of some row.
        gone (`dict[int, MemberLostError]`): the remote members that were lost.
    """

    def __init__(
        self, members: Sequence[Member], start: int, repeats: int = 1, drops: bool = False, drops_lost: bool = False
    ) -> None:
        self.members = members
        self.start = start
        self.repeats = repeats
        self.drops = drops
        self.dropped: set[int] = set()
        self.drops_lost = drops_lost
        self.gone: dict[int, MemberLostError] = {}
        self._unread: list[tuple[int, int, torch.Tensor, Sequence[int] | None]] = []

    def note(
        self, index: int, column: int, values: torch.Tensor, rows: Sequence[int] | None = None
    ) -> torch.Tensor | None:
        """Notes the numbers of a member; looks at them if members are dropped.

        Args:
            index (`int`): the member.
            column (`int`): the first column whose next token the numbers belong to.
            values (`torch.Tensor` of shape `(B, n)`, or `(R,)` with `rows`): the numbers of n columns.
            rows (`Sequence[int]`, *optional*): the row of each number.

        Returns:
            `torch.BoolTensor` or `None`: where the member is to be left out, in the shape of `values`.
        """
        if not self.drops:
            self._unread.append((index, column, values, rows))
            return None
        broken = ~values.isfinite()
        if not bool(broken.any()):
            return None
        if index not in self.dropped:
            self.dropped.add(index)
            logger.warning("%s; the member is left out of the row", self._found(index, column, broken, rows))
        return broken

    def look(self) -> None:
        """Reads the numbers unless that would wait for a device; called before members are mixed."""
        if self._unread and (self._unread[0][2].device.type == "cpu" or len(self._unread) >= _MOST_UNREAD):
            self.read()

    def unread(self, device: torch.device) -> torch.Tensor | None:
        """The sum of all numbers that were noted, on a device; `None` if there are none."""
        if not self._unread:
            return None
        return torch.cat([values.to(device).flatten() for _, _, values, _ in self._unread]).sum()

    def read(self, total: float | None = None) -> None:
        """Looks at all numbers that were noted; waits for the device once.

        Args:
            total (`float`, *optional*): the value of `unread`, if the host knows it.

        Raises:
            NonFiniteError: a number is not finite.
        """
        if not self._unread:
            return
        if total is None:
            total = float(present(self.unread(self._unread[0][2].device), "the unread numbers"))
        unread, self._unread = self._unread, []
        if math.isfinite(total):
            return
        for index, column, values, rows in unread:
            broken = ~values.isfinite()
            if bool(broken.any()):  # else only the sum is too large
                raise NonFiniteError(
                    f"{self._found(index, column, broken, rows)}; check the weights and the dtype of the member (fp16 "
                    "overflows where bf16 and fp32 do not), or set on_non_finite='drop' to continue without it"
                )

    def covered(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `(B, n, V)` with 0 in rows that are not finite, if `read` reports them later.

        Sampling from NaN would end the process's use of a CUDA device.
        """
        if self.drops or logits.device.type == "cpu":
            return logits
        return logits.masked_fill(~(logits.amax(-1, keepdim=True) < torch.inf), 0.0)

    @contextmanager
    def losing(self, index: int) -> Iterator[None]:
        """Goes on without a remote member that is lost inside, if that is wanted."""
        try:
            yield
        except MemberLostError as error:
            if not self.drops_lost:
                raise
            self.gone[index] = error

    def check_left(self, lost: torch.Tensor) -> None:
        """Raises an error if every member is lost in some row of `lost` `(..., M)`, and not by its context alone."""
        if self.gone and bool(lost.all(-1).any()):
            raise next(iter(self.gone.values()))
        if self.dropped and bool(lost.all(-1).any()):
            names = ", ".join(self.members[index].name for index in sorted(self.dropped))
            raise NonFiniteError(
                f"no member is left that can continue the text: the logits of {names} are NaN or infinite; check the "
                "weights and the dtype of these members"
            )

    def _found(self, index: int, column: int, broken: torch.Tensor, rows: Sequence[int] | None) -> str:
        """Which logits are not finite."""
        row, *after = broken.nonzero()[0].tolist()
        token = column + sum(after) + 1 - self.start  # from 0, as in `span_starts`
        row = (row if rows is None else rows[row]) // self.repeats
        return (
            f"logits of member {index} ({self.members[index].name}) are NaN or infinite for completion token {token} "
            f"(from 0) of row {row}"
        )


def losing(faults: MemberFaults | None, index: int) -> AbstractContextManager[None]:
    """See `MemberFaults.losing`; outside of `generate`, a lost member is an error."""
    return nullcontext() if faults is None else faults.losing(index)
