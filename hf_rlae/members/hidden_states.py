"""Hidden states of a member's newest tokens: the last one and, if a policy pools them, the mean over several."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from hf_rlae.errors import present
from hf_rlae.members.ragged_cache import WritePlan, writable

_KEPT_BEYOND = 64
"""Columns that are kept in addition to those of a mean, so that `crop` can go back. Source: ours."""


def with_means(states: torch.Tensor, valid: torch.Tensor | None, count: int, wanted: int) -> torch.Tensor:
    """The last `wanted` hidden states, each concatenated with the mean of the `count` states that end with it.

    Args:
        states (`torch.Tensor` of shape `(B, n, H)`): the hidden states of the newest columns.
        valid (`torch.Tensor` of shape `(B, n)`, *optional*): 0 for padding, which is left out of the means.
        count (`int`): number of states in a mean; if there are fewer, the mean is over those.
        wanted (`int`): number of columns to return.

    Returns:
        `torch.Tensor` of shape `(B, wanted, 2 H)`, in the dtype of the states. Means are computed in fp32.

    Example:

    >>> with_means(torch.tensor([[[1.0], [2.0], [6.0]]]), None, count=2, wanted=2)
    tensor([[[2.0000, 1.5000],
             [6.0000, 4.0000]]])
    """
    taken = states[:, -(wanted + count - 1) :].float()
    if valid is None:
        is_text = taken.new_ones(1, taken.shape[1])
    else:
        is_text = valid[:, -taken.shape[1] :].to(taken.device, torch.float32)
        taken = taken.masked_fill(is_text[..., None] == 0, 0.0)
    missing = wanted + count - 1 - taken.shape[1]
    if missing:
        taken, is_text = pad(taken, (0, 0, missing, 0)), pad(is_text, (missing, 0))
    if wanted == 1:  # the usual case, and faster than windows
        sums, numbers = taken.sum(1, keepdim=True), is_text.sum(1, keepdim=True)
    else:
        sums, numbers = taken.unfold(1, count, 1).sum(-1), is_text.unfold(1, count, 1).sum(-1)
    means = sums / numbers.clamp(min=1.0)[..., None]
    return torch.cat([states[:, -wanted:], means.to(states.dtype)], dim=-1)


class ColumnStates:
    """Hidden states of the newest columns of rows that advance together.

    Args:
        count (`int`): number of tokens in a mean.

    Attributes:
        end (`int`): the column after the newest one.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.end = 0
        self._limit = count
        self._store: torch.Tensor | None = None  # has twice as many columns, so that they are rarely moved
        self._length = 0

    def add(self, states: torch.Tensor, end: int, wanted: int, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Adds new columns. If they do not follow the stored columns directly, those are dropped.

        Args:
            states (`torch.Tensor` of shape `(B, n, H)`): the hidden states of the columns before `end`.
            end (`int`): the column after the new ones.
            wanted (`int`): number of last columns to return with means; at most n.
            mask (`torch.Tensor` of shape `(B, end)`, *optional*): 0 for padding.

        Returns:
            `torch.Tensor` of shape `(B, wanted, 2 H)` (see `with_means`), or `None` if `wanted` is 0.
        """
        if end - states.shape[1] != self.end:
            self._length = 0
        means: torch.Tensor | None = None
        if wanted:
            known = states
            if self._store is not None and self._length:
                earlier = self._store[:, max(0, self._length - self.count + 1) : self._length]
                known = torch.cat([earlier, states], dim=1)
            valid = None if mask is None else mask[:, end - known.shape[1] : end]
            means = with_means(known, valid, self.count, wanted)
        self._append(states[:, -self._limit :])
        self.end = end
        return means

    def _append(self, states: torch.Tensor) -> None:
        new, capacity = states.shape[1], 2 * self._limit
        store = self._store
        if store is None or len(store) != len(states) or store.shape[1] < capacity or self._length + new > capacity:
            kept = 0 if store is None or len(store) != len(states) else min(self._length, self._limit)
            moved = states.new_zeros(len(states), capacity, states.shape[-1])
            if store is not None and kept:
                moved[:, :kept] = store[:, self._length - kept : self._length]
            store, self._length = moved, kept
        store = self._store = writable(store)
        store[:, self._length : self._length + new] = states
        self._length += new

    def record(self) -> None:
        """Keeps more columns from now on, so that `crop` can go back."""
        self._limit = self.count + _KEPT_BEYOND

    def crop(self, length: int) -> bool:
        """Goes back to the first `length` columns; returns `False` and resets if too few columns are kept for means."""
        if length >= self.end:
            return True
        kept = self._length - (self.end - length)
        if kept < min(self.count - 1, length):
            self.reset()
            return False
        self._length, self.end = kept, length
        return True

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        if self._store is not None:
            self._store = self._store.index_select(0, rows.to(self._store.device))

    def reset(self) -> None:
        """Drops all columns."""
        self._store, self._length, self.end = None, 0, 0

    def copy(self) -> ColumnStates:
        """An independent copy."""
        twin = ColumnStates(self.count)
        twin._store = None if self._store is None else self._store.clone()
        twin._length, twin.end, twin._limit = self._length, self.end, self._limit
        return twin


class RaggedStates:
    """Hidden states of rows that advance and go back by different numbers of tokens: token `p` is at index `p`.

    Args:
        count (`int`): number of tokens in a mean.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._states: torch.Tensor | None = None

    def write(self, states: torch.Tensor, plan: WritePlan) -> None:
        """Stores the states `(R, n, H)` of the last n columns of a forward pass with this plan."""
        store = self._states
        if store is None or store.shape[1] <= plan.length:
            capacity = max(plan.length + 64, 2 * (0 if store is None else store.shape[1]))
            grown = states.new_zeros(plan.batch, capacity, states.shape[-1])
            if store is not None:
                grown[:, : store.shape[1]] = store
            store = self._states = grown
        store = self._states = writable(store)
        indices = plan.indices[:, -states.shape[1] :]
        indices = indices.masked_fill(indices < 0, store.shape[1] - 1)  # padding goes to an index without a token
        store[plan.rows.to(store.device)[:, None], indices.to(store.device)] = states

    def seen(self, plan: WritePlan, wanted: int) -> torch.Tensor:
        """The last `wanted` states of a forward pass with their means (see `with_means`): `(R, wanted, 2 H)`."""
        store = present(self._states, "the hidden states of the rows")
        indices = plan.indices[:, -wanted:, None].to(store.device)
        taken = indices - torch.arange(self.count, device=store.device)
        inside = taken >= 0
        states = store[plan.rows.to(store.device)[:, None, None], taken.clamp(min=0)]
        means = states.float().masked_fill(~inside[..., None], 0.0).sum(2) / inside.sum(2).clamp(min=1)[..., None]
        return torch.cat([states[:, :, 0], means.to(store.dtype)], dim=-1)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        if self._states is not None:
            self._states = self._states.index_select(0, rows.to(self._states.device))
