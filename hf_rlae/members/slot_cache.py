"""The static cache of a member that reads the columns of the text: transformers' own, but it can go back and grow."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, StaticCache
from transformers.cache_utils import StaticLayer

from hf_rlae.members.ragged_cache import capacity_for, selected


class SlotLayer(StaticLayer):
    """A [`~transformers.cache_utils.StaticLayer`] that can go back: masked slots are overwritten later."""

    is_croppable = True
    keys: torch.Tensor
    values: torch.Tensor

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` columns."""
        if self.is_initialized:
            self.cumulative_length.add_(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row `i` becomes the former row `beam_idx[i]`, in the same memory if the number of rows stays the same."""
        if self.is_initialized:
            self.keys, self.values = selected(self.keys, beam_idx), selected(self.values, beam_idx)
            self.batch_size = len(beam_idx)

    def take(self, other: SlotLayer) -> None:
        """Takes the columns of a smaller layer over."""
        if other.is_initialized:
            self.lazy_initialization(other.keys[:, :, :0], other.values[:, :, :0])
            self.keys[:, :, : other.max_cache_len] = other.keys
            self.values[:, :, : other.max_cache_len] = other.values
            self.cumulative_length.copy_(other.cumulative_length)


class SlotCache(Cache):
    """A cache in which column `c` of the text is in slot `c`.

    Args:
        num_layers (`int`): number of layers.
        columns (`int`): number of columns; the capacity is the next power of two.
    """

    def __init__(self, num_layers: int, columns: int) -> None:
        self.capacity = capacity_for(columns)
        super().__init__(layers=[SlotLayer(max_cache_len=self.capacity) for _ in range(num_layers)])

    @classmethod
    def of(cls, config: Any, columns: int) -> SlotCache | None:
        """The cache of a model; `None` for a model with other layers than those of full attention.

        Args:
            config (`PreTrainedConfig`): of the model.
            columns (`int`): number of columns.
        """
        layers = StaticCache(config, max_cache_len=1).layers
        return cls(len(layers), columns) if all(type(layer) is StaticLayer for layer in layers) else None

    def with_room(self, columns: int) -> SlotCache:
        """The cache itself, or a copy if it has too few slots, or was made in inference mode and is used outside."""
        first: Any = self.layers[0]
        is_readable = torch.is_inference_mode_enabled() or not (first.is_initialized and first.keys.is_inference())
        if columns <= self.capacity and is_readable:
            return self
        larger = SlotCache(len(self.layers), max(columns, self.capacity))
        for layer, old in zip(larger.layers, self.layers, strict=True):
            layer.take(old)  # type: ignore[union-attr, arg-type]
        return larger
