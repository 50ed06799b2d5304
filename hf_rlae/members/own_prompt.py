"""A member's own prompt before the completion that all members share."""

from __future__ import annotations

from typing import Any

import torch

from hf_rlae.members.shared_run import Scores


class OwnPromptRun:
    """A run of a member with its own prompt (such as its own rendering of a chat) before the shared completion.

    Args:
        run (`MemberRun`): the run that reads prompt and completion; it reads as `SharedRun` does.
        ids, mask (`torch.LongTensor` of shape `(B, L_m)`): the member's prompt, padded on the left; 1 = keep.
        start (`int`): the column of the first token of the completion.
    """

    def __init__(self, run: Any, ids: torch.Tensor, mask: torch.Tensor, start: int) -> None:
        self.inner = run
        self.ids = ids
        self.mask = mask
        self.start = start

    def prompt(self, row: int) -> tuple[int, ...]:
        """The ids of a row's own prompt, without padding."""
        return tuple(self.ids[row][self.mask[row].bool()].tolist())

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""
        return self.inner.forward_calls

    def columns(self, total: int) -> int:
        """See `SharedRun.columns`; includes the member's own prompt."""
        return total - self.start + self.ids.shape[1]

    def lengths(self, columns: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
        """See `SharedRun.lengths`; counts the member's own prompt instead of the shared one."""
        return columns - self.start + self.mask.sum(1).cpu()[:, None]

    def launch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> None:
        """See `SharedRun.launch`."""
        self.inner.launch(*self._whole(input_ids, attention_mask), keep, hidden)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> Scores:
        """See `SharedRun.read`; `keep` must not reach into the prompt, whose columns differ between members."""
        return self.inner.read(*self._whole(input_ids, attention_mask), keep, hidden)

    def _whole(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        rest = input_ids[:, self.start :]
        rest_mask = torch.ones_like(rest) if attention_mask is None else attention_mask[:, self.start :]
        ids = torch.cat([self.ids.to(rest.device), rest], dim=1)
        mask = torch.cat([self.mask.to(rest.device), rest_mask.to(self.mask.dtype)], dim=1)
        return ids, mask

    def reorder(self, rows: torch.Tensor) -> None:
        """See `SharedRun.reorder`."""
        self.inner.reorder(rows)
        self.ids, self.mask = (entry.index_select(0, rows.to(entry.device)) for entry in (self.ids, self.mask))

    def ahead(self, length: int) -> OwnPromptRun:
        """See `SharedRun.ahead`."""
        return OwnPromptRun(self.inner.ahead(self.columns(length)), self.ids, self.mask, self.start)

    def record(self) -> None:
        """See `SharedRun.record`."""
        self.inner.record()

    def crop(self, length: int) -> bool:
        """See `SharedRun.crop`."""
        return self.inner.crop(self.columns(length))

    def reset(self) -> None:
        """See `SharedRun.reset`."""
        self.inner.reset()
