"""What one `generate()` call knows: the text, the members' caches, the weights and the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import Cache

from hf_rlae.ensemble.draws import MemberDraws
from hf_rlae.ensemble.spans import SpanClock
from hf_rlae.ensemble.trace import Trace


class Relay(Protocol):
    """A member's state in one call."""

    @property
    def forward_calls(self) -> int: ...

    def reorder(self, rows: torch.Tensor) -> None: ...

    def record(self) -> None: ...

    def crop(self, length: int) -> bool: ...

    def reset(self) -> None: ...


class EnsembleCache(Cache):
    """The state of one call: it is passed to `forward` as `past_key_values` and never belongs to the model.

    Args:
        relays (`Sequence[Relay]`): one a member.
        use_cache (`bool`): whether members keep their own caches from step to step.
        record (`bool`): whether to record the members' log-probabilities of every token.
        hidden_tokens (`int`, defaults to 1): what hidden states the relays give policies (see `observed_tokens`).

    Attributes:
        ids (`torch.LongTensor` of shape `(B, L)` or `None`): the text so far.
        mask (`torch.LongTensor` of shape `(B, L)` or `None`): 1 = keep; `None` means that all columns count.
        seen (`int`): columns for which `forward` has run.
        absorbed (`int`): columns that members with different tokenizers have heard.
        clock (`SpanClock` or `None`): spans and weights; made at the first forward pass.
        expected_start (`int`, *optional*): the column of the first completion token, where it is known.
        outgrown (`set[int]`): members whose context the text of some row has outgrown, which has been told.
        is_continued (`bool`): the next `generate` goes on with these texts, inside their spans (see `keep_rows`).
    """

    def __init__(
        self, relays: Sequence[Relay], use_cache: bool = True, record: bool = False, hidden_tokens: int = 1
    ) -> None:
        super().__init__(layers=[])
        self.hidden_tokens = hidden_tokens
        self.relays = list(relays)
        self.use_cache = use_cache
        self.ids: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None
        self.seen = 0
        self.absorbed = 0
        self.clock: SpanClock | None = None
        self.trace = Trace(enabled=record)
        self.expected_start: int | None = None
        self.in_generate = False
        self.is_continued = False
        self.draws: MemberDraws | None = None
        self.is_recording = False
        self.is_padded: bool | None = None
        self.member_prompts: list[list[tuple[int, ...]]] | None = None
        self.encoded_prompts: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        self.scored_prompts: dict[tuple[int, tuple[int, ...]], list[float]] = {}
        self.warned = False
        self.outgrown: set[int] = set()

    def __repr__(self) -> str:
        return f"EnsembleCache(members={len(self.relays)}, columns={self.seen})"

    def __len__(self) -> int:
        return len(self.relays)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns for which `forward` has run."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No maximum."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the text with `query_length` further columns."""
        return self.seen + query_length, 0

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first forward pass."""
        return -1 if self.ids is None else int(self.ids.shape[0])

    @property
    def is_compileable(self) -> bool:
        """Members grow their caches: no static graph."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether something has been read."""
        return self.seen > 0

    @property
    def is_croppable(self) -> bool:
        """Columns can be taken back."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """One entry a member, so that an empty list is never taken for 'all of them'."""
        return [False] * len(self.relays)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Makes row `i` continue what row `beam_idx[i]` was: caches, weights, readings and trace."""
        with torch.inference_mode(self.in_generate):
            for relay in self.relays:
                relay.reorder(beam_idx)
            if self.clock is not None:
                self.clock.select(beam_idx)
        if self.ids is not None:
            self.ids = self.ids[beam_idx.to(self.ids.device)]
        if self.mask is not None:
            self.mask = self.mask[beam_idx.to(self.mask.device)]
        if self.member_prompts is not None:
            self.member_prompts = [self.member_prompts[row] for row in beam_idx.tolist()]
        self.trace.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times."""
        rows = torch.arange(max(self.batch_size, 0))
        self.reorder_cache(rows.repeat_interleave(repeats))  # type: ignore[arg-type]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        rows = torch.arange(max(self.batch_size, 0))[indices.cpu()]
        self.reorder_cache(rows)  # type: ignore[arg-type]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drops all rows but these; the next `generate` goes on with their texts, inside their spans.

        The recorded weights and log-probabilities of what is written are let go of: the output of the call that wrote
        it has them.

        Args:
            rows (`torch.LongTensor` of shape `(R,)`): the rows that stay.
        """
        self.reorder_cache(rows)  # type: ignore[arg-type]
        self.trace.member_logps.clear()
        if self.clock is not None:
            self.clock.records.clear()
        self.is_continued = True

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last `-tokens_to_remove` columns back."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give the number of columns to remove as a negative integer")
        length = self.seen + tokens_to_remove
        with torch.inference_mode(self.in_generate):
            done = [relay.crop(length) for relay in self.relays]
            if not all(done):  # the text is read again from its beginning
                for relay in self.relays:
                    relay.reset()
        self.absorbed = min(self.absorbed, length) if all(done) else 0
        if tokens_to_remove == 0:
            return
        self.seen = length
        if self.ids is not None:
            self.ids = self.ids[:, :length]
        if self.mask is not None:
            self.mask = self.mask[:, :length]
        if self.clock is not None:
            self.clock.crop(length)
        self.trace.crop(length)

    def activate_past_recording(self) -> None:
        """Makes members that forget keep what a rollback needs."""
        self.is_recording = True
        for relay in self.relays:
            relay.record()

    def reset(self) -> None:
        """Forgets everything."""
        for relay in self.relays:
            relay.reset()
        self.ids = self.mask = self.clock = None
        self.seen = self.absorbed = 0
        self.is_continued = False
        self.trace = Trace(enabled=self.trace.enabled)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Not for layers: members own their key and value caches."""
        raise TypeError("an EnsembleCache holds the members' caches and is not written by layers")
