"""A key-value cache in which every row of a batch advances and goes back by its own number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from hf_rlae.errors import present
from hf_rlae.transfers import upload

_LEAST_CAPACITY = 64
"""The capacity of the smallest static cache. Source: ours."""


def capacity_for(columns: int) -> int:
    """The capacity of a static cache for this many columns: a power of two, so that there are few different graphs.

    Example:

    >>> capacity_for(20), capacity_for(300)
    (64, 512)
    """
    return max(_LEAST_CAPACITY, 1 << (columns - 1).bit_length())


def writable(store: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if it was made in inference mode and is now written outside of it."""
    return store.clone() if store.is_inference() and not torch.is_inference_mode_enabled() else store


def selected(store: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows `rows` of a static cache's tensor; in its own memory, which graphs know, if their number is the same."""
    taken = store.index_select(0, rows.to(store.device))
    if taken.shape == store.shape:
        return writable(store).copy_(taken)
    return static(taken)


def static(store: torch.Tensor) -> torch.Tensor:
    """Marks a tensor as one that stays where it is, so that CUDA graphs read and write it there."""
    torch._dynamo.mark_static_address(store)
    return store


@dataclass(frozen=True)
class WritePlan:
    """The cache indices that one forward pass over R of the B rows writes.

    Attributes:
        indices (`torch.LongTensor` of shape `(R, N)`): the index of every column; -1 for padding, which is written to
            the last index.
        start (`int` or `None`): the first index, if all B rows write the same contiguous indices.
        length (`int`): number of indices that attention sees, L.
        rows (`torch.LongTensor` of shape `(R,)`): row numbers.
        batch (`int`): B.
        is_fixed (`bool`): whether all B rows write, and attention sees the whole capacity, so that only the values in
            tensors differ from plan to plan.
    """

    indices: torch.Tensor
    start: int | None
    length: int
    rows: torch.Tensor
    batch: int
    is_fixed: bool = False
    _places: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    def places(self, capacity: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `(R, 1)` and indices `(R, N)` to write to, with padding at the last of `capacity` indices.

        They are the same for all layers, so they are computed once.
        """
        known = self._places.get((capacity, device))
        if known is None:
            indices = self.indices.masked_fill(self.indices < 0, capacity - 1).to(device)
            known = self._places[capacity, device] = (self.rows.to(device)[:, None], indices)
        return known


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, with token `p` of every row at index `p`.

    Going back costs nothing: indices past a row's length are masked and overwritten later. The last index is for
    padding.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, cache: RaggedCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Marks the layer as initialised; `update` allocates the tensors."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new columns by the cache's plan; returns keys and values of its rows, `(R, heads, L, head_dim)`."""
        plan = present(self.cache.plan, "the write plan of the forward pass")
        if plan.is_fixed:
            rows, indices = plan.rows[:, None].to(key_states.device), plan.indices.to(key_states.device)
            self.keys[rows, :, indices] = key_states.transpose(1, 2)  # type: ignore[index]
            self.values[rows, :, indices] = value_states.transpose(1, 2)  # type: ignore[index]
            return self.keys, self.values  # type: ignore[return-value]
        self.is_initialized = True
        self.keys = self._written(self.keys, key_states, plan)
        self.values = self._written(self.values, value_states, plan)
        keys, values = self.keys[:, :, : plan.length], self.values[:, :, : plan.length]
        if len(plan.rows) == plan.batch:
            return keys, values
        rows = plan.rows.to(keys.device)
        return keys.index_select(0, rows), values.index_select(0, rows)

    def _written(self, store: torch.Tensor | None, new: torch.Tensor, plan: WritePlan) -> torch.Tensor:
        needed = plan.length + 1
        if store is None or store.shape[2] < needed:
            store = self._grown(
                store, (plan.batch, new.shape[1], self.cache.capacity(store, needed), new.shape[3]), new
            )
        store = writable(store)
        if plan.start is not None:
            store[:, :, plan.start : plan.start + new.shape[2]] = new
        else:
            rows, indices = plan.places(store.shape[2], store.device)
            store[rows, :, indices] = new.transpose(1, 2)
        return store

    def _grown(self, store: torch.Tensor | None, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        # zeros, not empty: masked values enter attention with weight 0, and 0 * NaN is NaN
        grown = like.new_zeros(shape)
        if store is not None:
            grown[:, :, : store.shape[2]] = store
        return static(grown) if self.cache.columns is not None else grown

    def reserve(self, length: int) -> int:
        """Makes room for `length` indices and that of padding; returns the capacity."""
        for name in ("keys", "values"):
            store = present(getattr(self, name), "the cache of a row")
            if store.shape[2] <= length:
                shape = (*store.shape[:2], self.cache.capacity(store, length + 1), store.shape[3])
                setattr(self, name, self._grown(store, shape, store))
            else:
                setattr(self, name, writable(store))
        return int(present(self.keys, "the keys of a row").shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of indices in use, and their offset."""
        return (self.cache.plan.length if self.cache.plan else query_length), 0

    def get_seq_length(self) -> int:
        """Number of indices in use before this forward pass."""
        return self.cache.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row `i` becomes the former row `beam_idx[i]`."""
        if self.keys is not None and self.values is not None:
            if self.cache.columns is not None:
                self.keys, self.values = selected(self.keys, beam_idx), selected(self.values, beam_idx)
                return
            self.keys = self.keys.index_select(0, beam_idx.to(self.keys.device))
            self.values = self.values.index_select(0, beam_idx.to(self.values.device))


class RaggedCache(Cache):
    """The cache of a `BatchRunner`; layers are added in the model's first forward pass.

    Args:
        columns (`int`, *optional*): the length that rows may reach, for a static cache; its capacity is the next power
            of two, and again the next one for longer rows. `None` for a cache that grows.
    """

    def __init__(self, columns: int | None = None) -> None:
        super().__init__(layers=[])
        self.columns = columns
        self.plan: WritePlan | None = None
        self.length = 0

    def capacity(self, store: torch.Tensor | None, needed: int) -> int:
        """Number of indices of a tensor that needs more than `store` has."""
        if self.columns is not None:
            return capacity_for(max(needed, self.columns + 1))
        return max(needed + 63, 2 * (store.shape[2] if store is not None else 0))

    def fixed(self, plan: WritePlan) -> WritePlan:
        """A plan over all rows as one of fixed shapes; room for it is made first."""
        layers: Any = self.layers  # those that share the keys of others stay empty
        capacity = max(layer.reserve(plan.length) for layer in layers if layer.is_initialized)
        indices = plan.indices.masked_fill(plan.indices < 0, capacity - 1)
        return replace(plan, indices=indices, start=None, length=capacity, is_fixed=True)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new columns of one layer (see `RaggedLayer.update`)."""
        while len(self.layers) <= layer_idx:
            self.layers.append(RaggedLayer(self))
        layer: Any = self.layers[layer_idx]
        return layer.update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of indices in use before this forward pass."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of indices in use, and their offset."""
        return (self.plan.length if self.plan else query_length), 0

    @property
    def is_compileable(self) -> bool:
        """Whether the cache is static; else it grows, so there is no static graph."""
        return self.columns is not None


def plan_columns(
    keep: Sequence[int],
    feed: Sequence[Sequence[int]],
    device: torch.device,
    rows: Sequence[int],
    batch: int,
    columns: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, WritePlan]:
    """Lays out ragged rows in columns, the last token of every row in the last column.

    Args:
        keep (`Sequence[int]`): number of tokens of each row that stay in the cache.
        feed (`Sequence[Sequence[int]]`): new ids of each row.
        device (`torch.device`): the device of the results.
        rows (`Sequence[int]`): the numbers of these R rows in the cache, in ascending order.
        batch (`int`): number of rows of the cache, B.
        columns (`int`, defaults to 0): the least number of columns, N.

    Returns:
        `tuple`: ids `(R, N)`, positions `(R, N)` (both 0 for padding) and the `WritePlan`.
    """
    columns = max(columns, *(len(ids) for ids in feed))
    table: list[int] = []  # flat, because making a tensor from lists of lists takes several times as long
    positions: list[int] = []
    indices: list[int] = []
    is_one_each = columns == 1 and all(feed)  # the usual case
    if is_one_each:
        table, positions, indices = [ids[0] for ids in feed], list(keep), list(keep)
    for kept, ids in () if is_one_each else zip(keep, feed, strict=True):
        pad = columns - len(ids)
        if pad:
            table += [0] * pad
            positions += [0] * pad
            indices += [-1] * pad
        new = range(kept, kept + len(ids))
        table += ids
        positions += new
        indices += new
    shape = (3, len(feed), columns)
    sent = upload(torch.tensor([*table, *positions, *indices, *rows], dtype=torch.long), device)
    placed, numbers = sent[: -len(rows)].view(shape), sent[-len(rows) :]
    length = max(keep) + 1 if is_one_each else max(kept + len(ids) for kept, ids in zip(keep, feed, strict=True))
    same = len(feed) == batch and min(keep) == max(keep) and all(len(ids) == columns for ids in feed)
    return placed[0], placed[1], WritePlan(placed[2], keep[0] if same else None, length, numbers, batch)


def shared_columns(lengths: Sequence[int], least_saved: float, copied: float) -> int:
    """The cheapest number of columns for the forward pass over all rows, if longer rows may get an extra pass.

    In one forward pass all rows are padded to the longest. If only a few rows are long, two passes are cheaper: one
    over the first ids of the long rows, and one over the last ids of all rows.

    Args:
        lengths (`Sequence[int]`): number of new ids of each of B rows.
        least_saved (`float`): number of cells (one column of one row) that a second pass must save.
        copied (`float`): the cost of copying the cache of a row that is run without the others, in cells.

    Returns:
        `int`: number of columns of the pass over all rows; the longest length if one pass is cheapest.

    Example:

    >>> shared_columns([1, 1, 1, 1, 9], least_saved=4, copied=1.0)
    1
    """
    longest = max(lengths)
    counts = [0] * (longest + 1)
    for length in lengths:
        counts[length] += 1
    best, fewest = longest, len(lengths) * longest - least_saved
    longer = len(lengths) - counts[0]
    for columns in range(1, longest):
        longer -= counts[columns]
        cells = len(lengths) * columns + longer * (longest - columns + copied)
        if cells <= fewest:
            best, fewest = columns, cells
    return best
