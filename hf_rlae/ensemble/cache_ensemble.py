"""The state of one `generate()` call: the text, the members' caches, the weights and the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache

from hf_rlae.ensemble.draws import MemberDraws
from hf_rlae.ensemble.engines.protocol import EngineCall, MemberRun
from hf_rlae.ensemble.spans import SpanWeights
from hf_rlae.ensemble.trace import Trace
from hf_rlae.policies import Policy


class EnsembleCache(Cache):
    """The state of one call: it is passed to `forward` and `generate` as `past_key_values`.

    It owns everything that belongs to a call, so that the ensemble itself never changes. Make it with
    [`EnsembleForCausalLM.new_cache`].

    Args:
        call (`EngineCall`): the members' runs.
        policy (`Policy`, *optional*): asked in this call; `None` for the ensemble's own.
        use_cache (`bool`, defaults to `True`): whether members keep their own caches from step to step.
        record (`bool`, defaults to `False`): whether to record the members' log-probabilities of every token.
        may_draw (`bool`, defaults to `True`): whether `generate` draws members, if the ensemble's config says so.

    Attributes:
        trace (`Trace`): what was recorded.
        draws (`MemberDraws` or `None`): draws the members that tokens are sampled from.
        prompt_logps (`dict`): by member and prompt, the log-probabilities of its tokens, where they were asked for.
    """

    def __init__(
        self,
        call: EngineCall,
        policy: Policy | None = None,
        use_cache: bool = True,
        record: bool = False,
        may_draw: bool = True,
    ) -> None:
        super().__init__(layers=[])
        self.call = call
        self.policy = policy
        self.use_cache = use_cache
        self.may_draw = may_draw
        self.trace = Trace(enabled=record)
        self.draws: MemberDraws | None = None
        self.prompt_logps: dict[tuple[int, tuple[int, ...]], list[float]] = {}
        self._ids: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._seen = 0
        self._spans: SpanWeights | None = None
        self._start: int | None = None
        self._in_generate = False
        self._is_continued = False
        self._is_recording = False
        self._is_padded: bool | None = None  # of the prompts of `generate`; found with the first columns

    def __repr__(self) -> str:
        return f"EnsembleCache(members={len(self)}, columns={self._seen})"

    def __len__(self) -> int:
        return len(self.runs)

    # -- what is known ------------------------------------------------------------------------------------

    @property
    def runs(self) -> Sequence[MemberRun]:
        """One run per member."""
        return self.call.runs

    @property
    def ids(self) -> torch.Tensor:
        """The text so far, `(B, L)`, on the ensemble's device."""
        if self._ids is None:
            raise RuntimeError("this EnsembleCache has no text yet")
        return self._ids

    @property
    def mask(self) -> torch.Tensor | None:
        """The attention mask `(B, L)`, 1 = keep; `None` if all columns count."""
        return self._mask

    def text_ids(self, row: int, columns: int) -> list[int]:
        """The ids of a row in the first `columns` columns, without padding."""
        ids = self.ids[row, :columns]
        return ids.tolist() if self._mask is None else ids[self._mask[row, :columns].bool()].tolist()

    def prompt_ids(self, row: int) -> tuple[int, ...]:
        """The ids of a row's prompt, without padding."""
        columns = max(int(self.spans.starts[row]), int(self.spans.firsts[row]) + 1)
        return tuple(self.text_ids(row, columns))

    @property
    def seen(self) -> int:
        """Columns for which `forward` has run."""
        return self._seen

    @property
    def spans(self) -> SpanWeights:
        """Spans and their weights; they begin with the first forward pass."""
        if self._spans is None:
            raise RuntimeError("no span of this EnsembleCache has begun yet")
        return self._spans

    @property
    def has_spans(self) -> bool:
        """Whether the first forward pass has begun."""
        return self._spans is not None

    @property
    def start(self) -> int | None:
        """The column of the first completion token, inside `generate`."""
        return self._start

    @property
    def in_generate(self) -> bool:
        """Whether `generate` has taken the cache."""
        return self._in_generate

    @property
    def is_continued(self) -> bool:
        """Whether the next `generate` continues these texts inside their spans (see `keep_rows`)."""
        return self._is_continued

    @property
    def is_recording(self) -> bool:
        """Whether columns may be taken back, as in assisted decoding."""
        return self._is_recording

    # -- what happens to it -------------------------------------------------------------------------------

    def begin_generate(self, columns: int, draws: MemberDraws | None = None) -> None:
        """A `generate` call takes the cache.

        Args:
            columns (`int`): width of its prompts; spans begin there, unless the call continues texts.
            draws (`MemberDraws`, *optional*): draws members for its tokens.
        """
        self._in_generate = True
        self.draws = draws
        if not self._is_continued:
            self._start = columns
            self._spans = None
        self._is_continued = False

    def extend(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Takes the columns that `forward` is about to run.

        Args:
            ids (`torch.LongTensor` of shape `(B, n)`): new columns.
            mask (`torch.LongTensor`, *optional*): 1 = keep, over the whole text or over the new columns.
        """
        self._ids = ids if self._seen == 0 else torch.cat([self.ids[:, : self._seen], ids], dim=1)
        if self._in_generate:  # written columns are never masked, so the mask of the prompts is enough
            if self._is_padded is None:
                self._is_padded = mask is not None and not bool(mask.all())
            mask = mask if self._is_padded else None
        missing = 0 if mask is None else self._ids.shape[1] - mask.shape[1]
        if mask is not None and missing:
            mask = torch.cat([mask.new_ones(mask.shape[0], missing), mask], dim=1)
        self._mask = mask

    def begin_spans(self, span_length: int, starts: torch.Tensor) -> None:
        """Sets where completions begin.

        Args:
            span_length (`int`): tokens per span.
            starts (`torch.LongTensor` of shape `(B,)`, on the CPU): the column of each row's first completion token.
        """
        self._spans = SpanWeights(span_length, starts, self.first_columns())

    def first_columns(self) -> torch.Tensor:
        """The first attended column of each row, of shape `(B,)`, on the CPU."""
        if self._mask is None:
            return torch.zeros(self.ids.shape[0], dtype=torch.long)
        return self._mask.long().argmax(1).cpu()

    def finish_step(self) -> None:
        """`forward` has run for all columns."""
        self._seen = self.ids.shape[1]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Makes row `i` continue what row `beam_idx[i]` was: caches, weights, readings and trace."""
        with torch.inference_mode(self._in_generate):
            self.call.reorder(beam_idx)
            if self._spans is not None:
                self._spans.select(beam_idx)
        if self._ids is not None:
            self._ids = self._ids[beam_idx.to(self._ids.device)]
        if self._mask is not None:
            self._mask = self._mask[beam_idx.to(self._mask.device)]
        self.trace.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times."""
        self.reorder_cache(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        self.reorder_cache(torch.arange(max(self.batch_size, 0))[indices.cpu()])

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drops all rows but these; the next `generate` continues their texts, inside their spans.

        The recorded weights and log-probabilities of what is written are dropped: the output of the call that wrote
        it has them.

        Args:
            rows (`torch.LongTensor` of shape `(R,)`): the rows that stay.
        """
        self.reorder_cache(rows)
        self.trace.member_logps.clear()
        if self._spans is not None:
            self._spans.records.clear()
        self._is_continued = True

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last `-tokens_to_remove` columns back."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give the number of columns to remove as a negative integer")
        length = self._seen + tokens_to_remove
        with torch.inference_mode(self._in_generate):
            self.call.crop(length)  # also where nothing is removed: recording caches then drop what is past
        if tokens_to_remove == 0:
            return
        self._seen = length
        if self._ids is not None:
            self._ids = self._ids[:, :length]
        if self._mask is not None:
            self._mask = self._mask[:, :length]
        if self._spans is not None:
            self._spans.crop(length)
        self.trace.crop(length)

    def activate_past_recording(self) -> None:
        """Lets columns be taken back, from now on."""
        self._is_recording = True
        self.call.record()

    def reset(self) -> None:
        """Forgets everything."""
        self.call.reset()
        self._ids = self._mask = self._spans = None
        self._seen = 0
        self._is_continued = False
        self.trace = Trace(enabled=self.trace.enabled)

    # -- what transformers asks of a cache ----------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns for which `forward` has run."""
        return self._seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No maximum."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the text with `query_length` further columns."""
        return self._seen + query_length, 0

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first forward pass."""
        return -1 if self._ids is None else int(self._ids.shape[0])

    @property
    def is_compileable(self) -> bool:
        """Members grow their caches: no static graph."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether something has been read."""
        return self._seen > 0

    @property
    def is_croppable(self) -> bool:
        """Columns can be taken back."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """One entry per member: an empty list would count as 'all of them'."""
        return [False] * len(self.runs)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Not for layers: members own their key and value caches."""
        raise TypeError("an EnsembleCache holds the members' caches and is not written by layers")
