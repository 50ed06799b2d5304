"""A call of the plain `generate` of the host, in which an ensemble decodes."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.engines.protocol import HostRun
from hf_rlae.ensemble.processor.capture import HostPass
from hf_rlae.members import ColumnStates


@dataclass
class HostCall:
    """One `generate` call: the ensemble's state, and the data to recognise the next step of the same call."""

    cache: EnsembleCache
    host: HostRun
    ids: torch.Tensor
    mask: torch.Tensor | None  # of the prompts
    groups: torch.Tensor  # rows with the same number have the same prompt
    pads: list[int]  # columns of padding in front of each row
    own_prompts: dict[str, torch.Tensor]  # the members' own, if the host's have images
    has_host_cache: bool  # the host has a cache, so it reads one column per step
    host_cache: Any = None
    has_warned: bool = False
    states: ColumnStates | None = None  # of the host, if the policy reads means of them

    @property
    def start(self) -> int:
        """The column of the first completion token."""
        return self.cache.start or 0

    def hidden(self, host_pass: HostPass) -> torch.Tensor | None:
        """The host's hidden states `(B, H)` after the newest column, as policies observe them."""
        if host_pass.hidden is None:
            return None
        if self.states is None:
            return host_pass.hidden[:, -1]
        columns = self.ids.shape[1]
        is_text: torch.Tensor | None = None
        if columns - self.states.count < max(self.pads):  # the mean would include padding
            is_text = torch.arange(columns)[None] >= torch.tensor(self.pads)[:, None]
        means = self.states.add(host_pass.hidden, columns, 1, is_text)
        return None if means is None else means[:, 0]

    def parents(self, ids: torch.Tensor, columns: int) -> torch.Tensor | range | None:
        """The row of the last step that each row continues; a `range` if it is the same, `None` in another call."""
        width = self.ids.shape[1]
        if ids.shape != (len(self.ids), width + 1) or (self.has_host_cache and columns > 1):
            return None
        before = ids[:, :width]
        if torch.equal(before, self.ids):
            return range(len(ids))
        if not torch.equal(before[:, : self.start], self.ids[:, : self.start]):
            return None
        same = (before[:, None, self.start :] == self.ids[None, :, self.start :]).all(-1)
        same &= self.groups[:, None] == self.groups[None]
        if not bool(same.any(1).all()):
            return None
        own = torch.arange(len(ids), device=ids.device)
        return torch.where(same.diagonal(), own, same.int().argmax(1))

    def reorder(self, parents: torch.Tensor) -> None:
        """Row `i` becomes the former row `parents[i]`."""
        self.cache.reorder_cache(parents)
        if self.mask is not None:
            self.mask = self.mask[parents.to(self.mask.device)]
        if self.states is not None:
            self.states.reorder(parents)


@dataclass
class ThreadCall:
    """The current call of one thread, or `None`."""

    call: HostCall | None = None

    def reference(self, host_cache: Any) -> Any:
        """A weak reference to the host's cache; once that is deleted, `generate` has ended, and the call is dropped."""
        of_thread = weakref.ref(self)

        def end(reference: Any) -> None:
            thread = of_thread()
            if thread is not None and thread.call is not None and thread.call.host_cache is reference:
                thread.call = None

        try:
            return weakref.ref(host_cache, end) if host_cache is not None else None
        except TypeError:  # a list or a tuple: the call is dropped when the next one begins
            return None
