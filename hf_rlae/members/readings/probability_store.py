"""Stores a member's next-token probabilities as long as a reading needs them."""

from __future__ import annotations

from itertools import islice

import torch

from hf_rlae.members.ragged_cache import writable
from hf_rlae.transfers import upload

WIDE = 4096
"""Vocabulary size from which copying a row costs more than a separate call per row. Source: ours, not measured."""


class ProbabilityStore:
    """A table of next-token distributions, one per entry; entry 0 is all zeros.

    Args:
        vocab_size (`int`): V_m.
        device (`torch.device`): the member's device.

    Attributes:
        width (`int`): V_m + 1; id `i` of entry `s` is at `s * width + i` of the flattened probabilities.
        probs (`torch.FloatTensor` of shape `(entries, V_m + 1)`): the probabilities of each entry, then a column of 0.
        log_z (`torch.FloatTensor` of shape `(entries,)`): the log of the sum of exponentials of the logits.
        hidden (`torch.Tensor` of shape `(entries, H)` or `None`): hidden states, if they are kept.
        newest (`torch.FloatTensor` of shape `(R,)`): `log_z` of the rows of the last `put`.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.width = vocab_size + 1
        self.device = device
        self.probs = torch.zeros(1, self.width, device=device)
        self.log_z = torch.zeros(1, device=device)
        self.hidden: torch.Tensor | None = None
        self.newest = torch.zeros(0, device=device)

    def put(self, logits: torch.Tensor, hidden: torch.Tensor | None, used: set[int]) -> list[int]:
        """Stores the softmax of logits.

        Args:
            logits (`torch.FloatTensor` of shape `(R, V_m)`): logits in fp32.
            hidden (`torch.Tensor` of shape `(R, H)`, *optional*): the hidden states to store with them.
            used (`set[int]`): entries that must not be overwritten.

        Returns:
            `list[int]`: the entry of each row.
        """
        logits = logits.to(self.device)  # a model on several devices returns them on its last device
        entries = self._free(len(logits), used)
        self.probs, self.log_z = writable(self.probs), writable(self.log_z)
        index = upload(entries, self.device)
        highest = logits.amax(-1)
        if goes_row_by_row(self.probs):
            top_probs = torch.empty_like(highest)
            for row, entry in enumerate(entries):
                kept = self.probs[entry, :-1]
                torch.softmax(logits[row], -1, out=kept)
                torch.amax(kept, 0, out=top_probs[row])
        else:
            probs = logits.softmax(-1)
            top_probs = probs.amax(-1)
            self.probs[index, :-1] = probs
        # log Z = logit - log p for any token; the most likely token gives the most precise value
        self.newest = highest - top_probs.log()
        self.log_z[index] = self.newest
        if hidden is not None:
            if self.hidden is None:
                self.hidden = torch.zeros(len(self.probs), hidden.shape[-1], dtype=hidden.dtype, device=self.device)
            self.hidden = writable(self.hidden)
            self.hidden[index] = hidden.to(self.device)
        return entries

    def take(self, places: torch.Tensor) -> torch.Tensor:
        """The probabilities at `places` (on the device) of the flattened store, in the shape of `places`."""
        return self.probs.view(-1).take(places)

    def sums(self, places: torch.Tensor, segments: torch.Tensor, count: int) -> torch.Tensor:
        """Sums of probabilities in fp32, of shape `(count,)`; `segments` has the index of the sum of each place.

        Both are on the device.
        """
        totals = torch.zeros(count, device=self.device)
        return totals.index_add_(0, segments, self.take(places))

    def _free(self, count: int, used: set[int]) -> list[int]:
        """Entries that are not in `used`; the store grows if there are too few."""
        if len(used) + count >= len(self.probs):
            size = max(2 * len(self.probs), len(used) + count + 1)
            self.probs, self.log_z = _grown(self.probs, size), _grown(self.log_z, size)
            if self.hidden is not None:
                self.hidden = _grown(self.hidden, size)
        return list(islice((entry for entry in range(1, len(self.probs)) if entry not in used), count))


def goes_row_by_row(probs: torch.Tensor) -> bool:
    """Whether to write rows one by one, which avoids a copy of all rows: faster for wide rows on a CPU."""
    return probs.device.type == "cpu" and probs.shape[-1] >= WIDE


def _grown(store: torch.Tensor, size: int) -> torch.Tensor:
    grown = store.new_zeros(size, *store.shape[1:])
    grown[: len(store)] = store
    return grown
