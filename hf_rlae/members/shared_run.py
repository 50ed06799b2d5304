"""Runs of members that share one tokenizer: they read the ensemble's ids without mapping them."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache

from hf_rlae.members.compiled_steps import STEP_COLUMNS, StaticCaches, compiled_step, log_other_cache
from hf_rlae.members.hidden_states import ColumnStates
from hf_rlae.members.images import PromptImages
from hf_rlae.members.member import Member
from hf_rlae.members.recurrence import returned_state
from hf_rlae.members.slot_cache import SlotCache
from hf_rlae.transfers import upload


@lru_cache(maxsize=256)
def accepted_arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """The argument names of a model's `forward` function."""
    return frozenset(inspect.signature(forward).parameters)


@contextmanager
def captured_head_input(member: Member, wanted: bool, num_logits: int = 0) -> Iterator[list[torch.Tensor]]:
    """Captures the input of the language-model head (the last hidden states), at no extra cost.

    Args:
        member (`Member`): the member whose head is watched.
        wanted (`bool`): whether to capture anything.
        num_logits (`int`, defaults to 0): number of last columns for which the head computes logits, 0 for all. The
            input of the other columns is captured, too.
    """
    captured: list[torch.Tensor] = []
    if not wanted:
        yield captured
        return
    owner = threading.get_ident()

    def capture(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if threading.get_ident() != owner:  # another thread may be running the same model
            return None
        captured.append(args[0])
        return (args[0][:, -num_logits:], *args[1:]) if num_logits else None

    # a model that is compiled as a whole does not call hooks that it did not have before
    with member.as_it_was(), member.model.get_output_embeddings().register_forward_pre_hook(capture):
        yield captured


Scores = tuple[torch.Tensor, torch.Tensor | None]
"""Logits of shape `(B, n, V_m)` in the model's dtype, and hidden states of shape `(B, n, H)` if they are requested."""


class ReadsSharedColumns:
    """A run that reads the columns of the text as they are."""

    def columns(self, total: int) -> int:
        """The number of columns that the member reads for a text of `total` columns."""
        return total

    def launch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> None:
        """Called for all members before `read`, with its arguments: a remote member begins to read."""

    def lengths(self, columns: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
        """The number of tokens `(B, n)` that the member has read in each row after the first `columns` `(n,)` columns.

        Args:
            columns (`torch.LongTensor` of shape `(n,)`): numbers of columns.
            firsts (`torch.LongTensor` of shape `(B,)`): the first attended column of each row.
        """
        return columns - firsts[:, None]


class SharedRun(ReadsSharedColumns):
    """The run of one member in one call, if all members share a tokenizer.

    Rows advance together and the padding is the caller's, so the model's own cache and masks are used. A single member
    therefore computes bit-exactly what its own `generate` computes, for every architecture.

    Args:
        member (`Member`): the member whose model is run.
        use_cache (`bool`): whether to keep the model's cache from step to step, or to run the whole text each time.
        shares_prompts (`bool`, defaults to `False`): whether rows with the same prompt read it once. Batches of
            different sizes may round differently, so a single member, which must be bit-exact, does not use this.
        drops_out (`bool`, defaults to `False`): whether the caller ignores rows that are longer than the member's
            context, so that positions past the context are allowed.
        hidden_tokens (`int`, defaults to 1): which hidden states are returned, if they are requested: 1 for that of the
            last token, of width H_m; n > 1 for that of the last token and the mean over the newest n, of width 2 H_m.

    Attributes:
        seen (`int`): number of columns that the member has read.
        images (`PromptImages` or `None`): the images in its prompts.
        static (`StaticCaches` or `None`): set before anything is read, the cache has a fixed capacity, and single
            columns can be read by a compiled model.
    """

    static: StaticCaches | None = None

    def __init__(
        self,
        member: Member,
        use_cache: bool,
        shares_prompts: bool = False,
        drops_out: bool = False,
        hidden_tokens: int = 1,
    ) -> None:
        self.member = member
        self.use_cache = use_cache
        self.shares_prompts = shares_prompts
        self.drops_out = drops_out
        self.hidden_tokens = hidden_tokens
        self.states = ColumnStates(hidden_tokens) if hidden_tokens > 1 else None
        self.seen = 0
        self.images: PromptImages | None = None
        self.forward_calls = 0
        self._recording = False
        self._cache: dict[str, Any] = {}

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool) -> Scores:
        """Reads all columns that the member has not read yet, in one forward pass if the model can read chunks.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): the whole text.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 = keep.
            keep (`int`): number of last columns for which logits are returned, n.
            hidden (`bool`): whether to return hidden states.

        Returns:
            `Scores`: logits and hidden states of the last n columns.
        """
        self.member.prepare()
        shared = (
            distinct_rows(input_ids, attention_mask, None if self.images is None else self.images.rows)
            if self.shares_prompts and self.seen == 0 and self.use_cache
            else None
        )
        if shared is not None:
            if self.images is not None:
                self.images = self.images.select(shared[0].tolist())
            return read_distinct(self, *shared, input_ids, attention_mask, keep, hidden)
        device = self.member.device
        ids = input_ids.to(device)
        mask = None if attention_mask is None else attention_mask.to(device)
        total = ids.shape[1]
        if self.seen == 0 or total == self.seen + 1 or self.member.recurrence.reads_chunks:
            return self._forward(ids, mask, keep, hidden)
        steps = []
        for end in range(self.seen + 1, total + 1):
            step = self._forward(ids[:, :end], None if mask is None else mask[:, :end], 1, hidden)
            if end > total - keep:
                steps.append(step)
        states = [state for _, state in steps if state is not None]
        return torch.cat([logits for logits, _ in steps], dim=1), torch.cat(states, dim=1) if states else None

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor | None, keep: int, hidden: bool) -> Scores:
        member = self.member
        model: Any = member.model
        total = ids.shape[1]
        # means of later columns need the hidden states of all new columns
        num_columns = keep if self.states is None else total - self.seen
        is_step = self._prepare_static(total)
        if self._recording and not self._cache and self.use_cache and not member.is_recurrent:
            # created here, so that the first pass records what `crop` needs, too
            self._cache = {"past_key_values": DynamicCache(config=member.config)}
            self._for_each_cache("activate_past_recording")
        arguments: dict[str, Any] = {"use_cache": self.use_cache, "attention_mask": mask, **self._cache}
        accepted = accepted_arguments(type(model).forward)
        if "position_ids" in accepted:
            if mask is None:
                arguments["position_ids"] = torch.arange(total, device=ids.device)[None]
            else:
                positions = mask.long().cumsum(-1) - 1
                arguments["position_ids"] = positions.masked_fill(mask == 0, 0)
            if self.drops_out and member.context_length is not None:  # outputs of rows past it are ignored
                arguments["position_ids"] = arguments["position_ids"].clamp(max=member.context_length - 1)
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = num_columns
        if self.images is not None:
            arguments.update(self.images.arguments(total, self.seen))
        inputs = model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=total - self.seen if self.use_cache else None,
            is_first_iteration=self.seen == 0,
            **arguments,
        )
        needs_hidden = hidden or self.states is not None
        num_logits = keep if num_columns > keep else 0
        # no gradients: they reach the weights of the mixture, never the members
        with (
            torch.no_grad(),
            captured_head_input(member, needs_hidden, num_logits) as captured,
            self._compiled_step(total - self.seen if is_step else 0),
        ):
            outputs = model(**inputs, return_dict=True)
        self.forward_calls += 1
        if self.use_cache:
            self._cache = returned_state(outputs)
            self.seen = total
        logits = outputs.logits[:, -keep:]
        if self.states is None or not captured:
            return logits, captured[-1][:, -keep:] if captured else None
        return logits, self.states.add(captured[-1], total, keep if hidden else 0, mask)

    def _prepare_static(self, total: int) -> bool:
        """Makes the static cache, or room in it for `total` columns; returns whether this pass can be compiled."""
        cache, static = self._cache.get("past_key_values"), self.static
        if isinstance(cache, SlotCache):
            self._cache["past_key_values"] = cache.with_room(total)
            return static is not None and total - self.seen in STEP_COLUMNS
        if (
            static is not None
            and not self.seen
            and self.use_cache
            and self.images is None
            and static.is_for(self.member)
        ):
            made = SlotCache.of(self.member.config, max(total, static.columns))
            if made is None:
                log_other_cache(self.member)
            else:
                self._cache = {"past_key_values": made}
        return False

    def _compiled_step(self, columns: int) -> AbstractContextManager[Any]:
        compiled = (
            self.static.compiled(self.member, self._cache["past_key_values"]) if columns and self.static else None
        )
        return compiled_step(self.member, compiled, columns)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`; the number of rows may change."""
        rows = upload(rows, self.member.device)
        if self.states is not None:
            self.states.reorder(rows)
        if self.images is not None:
            self.images = self.images.select(rows.tolist())
        for name, cache in self._cache.items():
            if name == "state":
                self._cache[name] = [tensor.index_select(0, rows.to(tensor.device)) for tensor in cache]
            else:
                cache.reorder_cache(rows)

    def record(self) -> None:
        """Records what `crop` needs, from now on."""
        self._recording = True
        if self.states is not None:
            self.states.record()
        self._for_each_cache("activate_past_recording")

    def crop(self, length: int) -> bool:
        """Goes back to the first `length` columns; a cache that cannot be cropped is dropped, and built again."""
        if self.states is not None and not self.states.crop(length):
            self.reset()
        columns = max(self.seen - length, 0)
        cache = self._cache.get("past_key_values")
        if cache is not None and cache.is_croppable:
            cache.crop(-columns)  # also if nothing is removed: a recording cache then drops its old records
            self.seen -= columns
        elif columns:
            self.reset()
        return True

    def reset(self) -> None:
        """Drops everything that was read."""
        if self.states is not None:
            self.states.reset()
        self._cache.clear()
        self.seen = 0

    def fork(self) -> SharedRun:
        """An independent copy of the run."""
        twin = SharedRun(self.member, self.use_cache, hidden_tokens=self.hidden_tokens)
        twin.states = None if self.states is None else self.states.copy()
        twin.seen, twin._recording = self.seen, self._recording
        twin._cache = copy.deepcopy(self._cache)
        return twin

    def ahead(self, length: int) -> SharedRun:
        """A copy for reading on after the first `length` columns; it returns the hidden states of single tokens."""
        twin = SharedRun(self.member, use_cache=True, drops_out=True)
        twin.images = self.images
        cache = self._cache.get("past_key_values")
        removes = self.seen > length
        if not removes or (cache is not None and cache.is_croppable and not any(cache.is_sliding)):
            twin.seen, twin._cache = self.seen, copy.deepcopy(self._cache)
            if removes:
                twin.crop(length)
        return twin  # else it reads the text again

    def _for_each_cache(self, method: str) -> None:
        for cache in self._cache.values():
            if hasattr(cache, method):
                getattr(cache, method)()


def distinct_rows(
    ids: torch.Tensor, mask: torch.Tensor | None, images: Sequence[tuple[int, ...]] | None = None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Finds equal rows, so that samples or beams of one prompt read it once.

    Args:
        ids (`torch.LongTensor` of shape `(B, L)`), mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 = keep.
        images (`Sequence[tuple[int, ...]]`, *optional*): the images of each row.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]` or `None`: the first occurrence of each of the U distinct rows, of
        shape `(U,)`, and for every row the index of its distinct row, of shape `(B,)`, on the CPU; `None` if all rows
        differ.

    Example:

    >>> distinct_rows(torch.tensor([[1, 2], [3, 4], [1, 2]]), None)
    (tensor([0, 1]), tensor([0, 1, 0]))
    """
    if len(ids) < 2:
        return None
    rows = ids.tolist() if mask is None else torch.cat([ids * mask.to(ids.device), mask.to(ids.device)], 1).tolist()
    if images is not None:
        rows = [[*row, *own] for row, own in zip(rows, images, strict=True)]  # equal ids have equally many images
    kinds: dict[tuple[int, ...], int] = {}
    firsts, places = [], []
    for at, row in enumerate(map(tuple, rows)):
        if row not in kinds:
            kinds[row] = len(kinds)
            firsts.append(at)
        places.append(kinds[row])
    return None if len(firsts) == len(places) else (torch.tensor(firsts), torch.tensor(places))


def read_distinct(
    run: Any,
    firsts: torch.Tensor,
    places: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    keep: int,
    hidden: bool,
) -> Scores:
    """Reads the distinct rows `firsts` with a fresh run, and copies the outputs of row `places[i]` to row `i`.

    Args:
        run (`SharedRun` or `SeparateRowsRun`): a run that has read nothing.
        firsts, places (`torch.LongTensor`): see `distinct_rows`.
        input_ids, attention_mask, keep, hidden: see `SharedRun.read`.
    """
    mask = None if attention_mask is None else attention_mask[firsts]
    logits, states = run.read(input_ids[firsts], mask, keep, hidden)
    run.reorder(places)
    places = places.to(logits.device)
    return logits[places], None if states is None else states[places]
