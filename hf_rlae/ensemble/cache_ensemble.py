"""The state of one `forward` or `generate` call: the text, the members' caches, the weights and the trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, LogitsProcessorList

from hf_rlae.ensemble.draws import MemberDraws
from hf_rlae.ensemble.engines.protocol import EngineCall, MemberRun
from hf_rlae.ensemble.faults import MemberFaults
from hf_rlae.ensemble.spans import SpanWeights
from hf_rlae.ensemble.trace import Trace
from hf_rlae.members import GivenImages
from hf_rlae.policies import Policy


class EnsembleCache(Cache):
    """The state of one call, passed to `forward` and `generate` as `past_key_values`.

    It holds all state of a call, so that the ensemble itself does not change. Make it with
    [`EnsembleForCausalLM.new_cache`].

    Args:
        call (`EngineCall`): the members' runs.
        policy (`Policy`, *optional*): the policy of this call; `None` for the ensemble's own.
        use_cache (`bool`, defaults to `True`): whether members keep their own caches from step to step.
        record (`bool`, defaults to `False`): whether to record the members' log-probabilities of every token.
        may_draw (`bool`, defaults to `True`): whether `generate` draws members, if the ensemble's config has `draw`.
        draw_numbers (callable, *optional*): see `numbers` of [`MemberDraws`].

    Attributes:
        trace (`Trace`): the recorded log-probabilities.
        draws (`MemberDraws` or `None`): draws the members from which tokens are sampled.
        drawn (`list[tuple[int, torch.LongTensor]]`): what was drawn in the last `generate` call; see `MemberDraws`.
        member_processors (`LogitsProcessorList` or `None`): act on each member's distribution, inside `generate`; see
            `EnsembleConfig.warp`.
        faults (`MemberFaults` or `None`): looks for members whose logits are not finite, inside `generate`.
        given (`list[int]` or `None`): in the first forward pass outside of `generate`, the column of the last special
            token that begins each row; see `given_columns`.
        ended (`torch.BoolTensor` of shape `(B,)` or `None`): rows that no member can continue after the newest column.
        images (`GivenImages` or `None`): the images in the prompts of the call.
        has_images (`bool`): whether prompts have images, also where a plain `generate` gives them to the host.
        prompt_logps (`dict`): by member and prompt, the log-probabilities of the prompt's tokens, once they are
            computed.
    """

    def __init__(
        self,
        call: EngineCall,
        policy: Policy | None = None,
        use_cache: bool = True,
        record: bool = False,
        may_draw: bool = True,
        draw_numbers: Callable[[int, int], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.call = call
        self.policy = policy
        self.use_cache = use_cache
        self.may_draw = may_draw
        self.draw_numbers = draw_numbers
        self._start_empty(record)

    def _start_empty(self, record: bool) -> None:
        self.trace = Trace(enabled=record)
        self.draws: MemberDraws | None = None
        self.drawn: list[tuple[int, torch.Tensor]] = []
        self.member_processors: LogitsProcessorList | None = None
        self.faults: MemberFaults | None = None
        self.ended: torch.Tensor | None = None
        self.given: list[int] | None = None
        self.images: GivenImages | None = None
        self.has_images = False
        self.prompt_logps: dict[tuple[int, tuple[int, ...]], list[float]] = {}
        self._ids: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._seen = 0
        self._spans: SpanWeights | None = None
        self._start: int | None = None
        self._in_generate = False
        self._is_continued = False
        self._is_recording = False
        self._generate_policy: Policy | None = None
        self._is_padded: bool | None = None  # whether the prompts of `generate` have padding; None until known

    def __repr__(self) -> str:
        return f"EnsembleCache(members={len(self)}, columns={self._seen})"

    def __len__(self) -> int:
        return len(self.runs)

    # -- state --------------------------------------------------------------------------------------------

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
        """Number of columns for which `forward` has run."""
        return self._seen

    @property
    def spans(self) -> SpanWeights:
        """Spans and their weights; available from the first forward pass on."""
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
        """Whether the cache belongs to a `generate` call."""
        return self._in_generate

    @property
    def is_continued(self) -> bool:
        """Whether the next `generate` continues these texts inside their spans (see `keep_rows`)."""
        return self._is_continued

    @property
    def is_recording(self) -> bool:
        """Whether columns may be removed again, as in assisted decoding."""
        return self._is_recording

    # -- changes of state ---------------------------------------------------------------------------------

    def begin_generate(
        self, columns: int, policy: Policy, draws: MemberDraws | None = None, faults: MemberFaults | None = None
    ) -> None:
        """Called when a `generate` call starts to use the cache.

        Args:
            columns (`int`): width of the prompts; spans begin there, unless the call continues texts.
            policy (`Policy`): the ensemble's own; asked unless the cache has a policy of its own.
            draws (`MemberDraws`, *optional*): draws the members from which tokens are sampled.
            faults (`MemberFaults`, *optional*): looks for members whose logits are not finite.
        """
        self._in_generate = True
        self._generate_policy = policy
        self._is_padded = None
        self.draws, self.faults, self.ended = draws, faults, None
        if not self._is_continued:
            self._start = columns
            self._spans = None
            self.trace = Trace(enabled=self.trace.enabled)
        self._is_continued = False

    def end_generate(self) -> None:
        """Called when a `generate` call has ended, also by an exception."""
        self._in_generate = self._is_recording = False
        self.drawn = [] if self.draws is None else self.draws.drawn
        self._generate_policy = self.draws = self.faults = self.ended = self.member_processors = None

    def policy_or(self, policy: Policy) -> Policy:
        """The policy to ask: the cache's own, that of the running `generate` call, or else `policy`."""
        return self.policy or self._generate_policy or policy

    def extend(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Adds the columns that `forward` is about to run.

        Args:
            ids (`torch.LongTensor` of shape `(B, n)`): the new columns.
            mask (`torch.LongTensor`, *optional*): 1 = keep, over the whole text or over the new columns.
        """
        self._ids = ids if self._seen == 0 else torch.cat([self.ids[:, : self._seen], ids], dim=1)
        if self._in_generate:  # generated columns are never masked, so prompts without padding need no mask
            if self._is_padded is None:
                self._is_padded = mask is not None and not bool(mask.all())
            mask = mask if self._is_padded else None
        missing = 0 if mask is None else self._ids.shape[1] - mask.shape[1]
        if mask is not None and missing:
            before = mask.new_ones(mask.shape[0], missing) if self._mask is None else self._mask[:, :missing]
            mask = torch.cat([before, mask], dim=1)
        self._mask = mask

    def begin_spans(self, span_length: int, starts: torch.Tensor) -> None:
        """Sets the columns where completions begin.

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
        """Called when `forward` has run for all columns."""
        self._seen = self.ids.shape[1]
        self.given = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row `i` becomes the former row `beam_idx[i]`: caches, weights, readings and trace."""
        rows = beam_idx.cpu()  # once for all members
        with torch.inference_mode(self._in_generate):
            self.call.reorder(rows)
            if self._spans is not None:
                self._spans.select(rows)
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
        """Keeps only the given rows; the next `generate` continues their texts, inside their spans.

        The recorded weights and log-probabilities are dropped; the output of the call that recorded them has them.

        Args:
            rows (`torch.LongTensor` of shape `(R,)`): the rows to keep.
        """
        self.reorder_cache(rows)
        self.trace.member_logps.clear()
        if self._spans is not None:
            self._spans.records.clear()
        self._is_continued = True

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` columns."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give the number of columns to remove as a negative integer")
        length = self._seen + tokens_to_remove
        with torch.inference_mode(self._in_generate):
            self.call.crop(length)  # also if nothing is removed: recording caches then drop their old records
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
        """Records what `crop` needs, from now on."""
        self._is_recording = True
        self.call.record()

    def reset(self) -> None:
        """Drops everything: the cache is as new."""
        self.call = self.call.engine.new_call(self.use_cache, self.call.hidden_tokens)
        self._start_empty(self.trace.enabled)

    # -- transformers' interface of a cache ---------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns for which `forward` has run."""
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
        """`False`: the members' caches grow, so there is no static graph."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether `forward` has run for some column."""
        return self._seen > 0

    @property
    def is_croppable(self) -> bool:
        """`True`: columns can be removed."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """`False` per member; `all` of an empty list would be `True`."""
        return [False] * len(self.runs)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: the members' own caches hold keys and values."""
        raise TypeError(
            "layers cannot write to an EnsembleCache, because it holds the members' caches; pass it to the ensemble"
        )
