"""A model's next-token probabilities after many contexts that begin alike; what they share is read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel


class TreeReader:
    """Keeps the keys and values of every token that it has read, and where each context has its own.

    Args:
        model (`PreTrainedModel`): full attention in every layer.
        max_rows (`int`): the most contexts of a forward pass.
    """

    def __init__(self, model: PreTrainedModel, max_rows: int = 256) -> None:
        config = model.config.get_text_config(decoder=True)
        if getattr(model, "_is_stateful", False) or getattr(config, "sliding_window", None):
            raise ValueError(
                f"{model.name_or_path}: keys and values of single tokens are kept, which needs full attention"
            )
        self.model = model
        self.max_rows = max_rows
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._slots: dict[tuple[int, ...], list[int]] = {(): []}
        self._kept: list[list[torch.Tensor]] = []  # for each layer keys and values `(slots, heads, size)`
        self._count = 0

    def read(self, contexts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Probabilities `(N, V_m)` of what follows each context (never empty)."""
        found = []
        for start in range(0, len(contexts), self.max_rows):
            found.append(self._forward(contexts[start : start + self.max_rows]))
        return np.concatenate(found)

    @torch.inference_mode()
    def _forward(self, contexts: Sequence[tuple[int, ...]]) -> np.ndarray:
        known = [self._longest_known(context[:-1]) for context in contexts]
        fresh = [context[len(self._slots[old]) :] for context, old in zip(contexts, known, strict=True)]
        slots = [self._slots[old] for old in known]
        past, width = max(map(len, slots)), max(map(len, fresh))
        ids, mask = torch.zeros(len(contexts), width, dtype=torch.long), torch.zeros(len(contexts), past + width)
        places, positions = torch.zeros(len(contexts), past, dtype=torch.long), torch.zeros_like(ids)
        for row, (old, new) in enumerate(zip(slots, fresh, strict=True)):
            places[row, past - len(old) :] = torch.tensor(old, dtype=torch.long)
            ids[row, width - len(new) :] = torch.tensor(new)
            positions[row, width - len(new) :] = torch.arange(len(old), len(old) + len(new))
            mask[row, past - len(old) : past] = mask[row, past + width - len(new) :] = 1
        cache = DynamicCache(config=self.model.config)
        if past:
            for layer, tables in enumerate(self._kept):
                keys, values = (table[places].transpose(1, 2) for table in tables)
                cache.update(keys, values, layer)
        device = self.model.device
        logits = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        self._keep(cache, contexts, slots, fresh, width)
        return logits.double().softmax(-1).cpu().numpy()

    def _longest_known(self, context: tuple[int, ...]) -> tuple[int, ...]:
        while context not in self._slots:
            context = context[:-1]
        return context

    def _keep(
        self,
        cache: DynamicCache,
        contexts: Sequence[tuple[int, ...]],
        slots: Sequence[list[int]],
        fresh: Sequence[tuple[int, ...]],
        width: int,
    ) -> None:
        is_new = torch.tensor([[column >= width - len(new) for column in range(width)] for new in fresh])
        for layer, entry in enumerate(cache.layers):
            new = [
                table[:, :, -width:].transpose(1, 2)[is_new.to(table.device)] for table in (entry.keys, entry.values)
            ]
            if layer == len(self._kept):
                self._kept.append([table[:0] for table in new])
            end = self._count + len(new[0])
            for index, more in enumerate(new):
                table = self._kept[layer][index]
                if end > len(table):  # twice as long, so that copying costs little on the whole
                    table = torch.cat([table, table.new_zeros(2 * end - len(table), *table.shape[1:])])
                    self._kept[layer][index] = table
                table[self._count : end] = more
        for context, old, new in zip(contexts, slots, fresh, strict=True):
            self._slots[context] = [*old, *range(self._count, self._count + len(new))]
            self._count += len(new)
