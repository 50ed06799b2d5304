"""Where a member's next-token probabilities are kept for as long as a reading needs them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from hf_rlae.members.ragged_cache import writable

WIDE = 4096
"""Ids from which on rows are taken to be dearer to copy than calls of their own. Source: ours, not measured."""


class ProbabilityStore:
    """Rows of probabilities in entries, each with a column of zeros at its end; entry 0 is all zeros.

    Args:
        vocab_size (`int`): V_m.
        device (`torch.device`): of the member.

    Attributes:
        width (`int`): V_m + 1; id `i` of entry `s` is at `s * width + i` of the flattened probabilities.
        probs (`torch.FloatTensor` of shape `(entries, V_m + 1)`): of each entry.
        log_z (`torch.FloatTensor` of shape `(entries,)`): the log of the sum of exponentials of the logits.
        hidden (`torch.Tensor` of shape `(entries, H)` or `None`): hidden states, if they are kept.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.width = vocab_size + 1
        self.device = device
        self.probs = torch.zeros(1, self.width, device=device)
        self.log_z = torch.zeros(1, device=device)
        self.hidden: torch.Tensor | None = None

    def put(self, logits: torch.Tensor, hidden: torch.Tensor | None, used: set[int]) -> list[int]:
        """Keeps the distributions of logits.

        Args:
            logits (`torch.FloatTensor` of shape `(R, V_m)`): fp32.
            hidden (`torch.Tensor` of shape `(R, H)`, *optional*): kept beside them.
            used (`set[int]`): entries that must not be overwritten.

        Returns:
            the entry of each row.
        """
        logits = logits.to(self.device)  # of a model on several devices they come from the last one
        entries = self._free(len(logits), used)
        self.probs, self.log_z = writable(self.probs), writable(self.log_z)
        index = torch.tensor(entries, device=self.device)
        highest = logits.amax(-1)
        if goes_row_by_row(self.probs):
            likeliest = torch.empty_like(highest)
            for row, entry in enumerate(entries):
                kept = self.probs[entry, :-1]
                torch.softmax(logits[row], -1, out=kept)
                torch.amax(kept, 0, out=likeliest[row])
        else:
            probs = logits.softmax(-1)
            likeliest = probs.amax(-1)
            self.probs[index, :-1] = probs
        # log Z = logit - log p of any token: that of the likeliest one is the most precise
        self.log_z[index] = highest - likeliest.log()
        if hidden is not None:
            if self.hidden is None:
                self.hidden = torch.zeros(len(self.probs), hidden.shape[-1], dtype=hidden.dtype, device=self.device)
            self.hidden = writable(self.hidden)
            self.hidden[index] = hidden.to(self.device)
        return entries

    def take(self, places: torch.Tensor) -> torch.Tensor:
        """Probabilities at places of the flattened store, in the shape of `places`."""
        return self.probs.view(-1).take(places.to(self.device))

    def sums(self, places: torch.Tensor, segments: torch.Tensor, count: int) -> torch.Tensor:
        """Sums of probabilities in fp32, of shape `(count,)`; `segments` says which sum each place belongs to."""
        totals = torch.zeros(count, device=self.device)
        return totals.index_add_(0, segments.to(self.device), self.take(places))

    def _free(self, count: int, used: set[int]) -> list[int]:
        """Slots that nobody uses; the store grows when there are too few."""
        if len(used) + count >= len(self.probs):
            size = max(2 * len(self.probs), len(used) + count + 1)
            self.probs, self.log_z = _grown(self.probs, size), _grown(self.log_z, size)
            if self.hidden is not None:
                self.hidden = _grown(self.hidden, size)
        return list(islice((entry for entry in range(1, len(self.probs)) if entry not in used), count))


def goes_row_by_row(probs: torch.Tensor) -> bool:
    """Whether wide rows on a CPU are best written one by one into their places, which saves a copy of everything."""
    return probs.device.type == "cpu" and probs.shape[-1] >= WIDE


def _grown(store: torch.Tensor, size: int) -> torch.Tensor:
    grown = store.new_zeros(size, *store.shape[1:])
    grown[: len(store)] = store
    return grown


def flat(ids: Sequence[int], entries: Sequence[int], width: int) -> torch.Tensor:
    """Places of `ids[i]` in entry `entries[i]`."""
    return torch.tensor([i + entry * width for i, entry in zip(ids, entries, strict=False)], dtype=torch.long)
