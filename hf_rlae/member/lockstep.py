"""A member whose tokenizer is the ensemble's own: it reads the ensemble's columns as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from hf_rlae.member.member import Member
from hf_rlae.member.recurrence import returned_state


@lru_cache(maxsize=256)
def accepted_arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """The argument names of a model's `forward` function."""
    return frozenset(inspect.signature(forward).parameters)


@contextmanager
def captured_head_input(member: Member, wanted: bool) -> Iterator[list[torch.Tensor]]:
    """Collects what enters the language-model head: the last hidden states, at no cost."""
    caught: list[torch.Tensor] = []
    if not wanted:
        yield caught
        return
    head = member.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        yield caught
    finally:
        handle.remove()


class LockstepRelay:
    """One member's cache in one call, where all members share a tokenizer.

    Rows advance together and the padding is the caller's, so the model's own cache and masks serve: one member
    alone computes bit for bit what its own `generate` computes, whatever its architecture.

    Args:
        member (`Member`): whose model is run.
        use_cache (`bool`): keep the model's cache from step to step, or run the whole text each time.

    Attributes:
        seen (`int`): columns that the member has read.
    """

    def __init__(self, member: Member, use_cache: bool) -> None:
        self.member = member
        self.use_cache = use_cache
        self.seen = 0
        self.forward_calls = 0
        self._recording = False
        self._cache: dict[str, Any] = {}

    def run(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Reads all columns that the member has not read yet, in one forward pass.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): the whole text.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 = keep.
            keep (`int`): for how many of the last columns logits are wanted; 0 for all.
            hidden (`bool`): whether the last hidden states are wanted.

        Returns:
            logits of shape `(B, keep, V_m)` in the model's dtype, and hidden states `(B, keep, H_m)` or `None`.
        """
        device = self.member.device
        ids = input_ids.to(device)
        mask = None if attention_mask is None else attention_mask.to(device)
        total = ids.shape[1]
        if self.seen == 0 or total == self.seen + 1 or self.member.reads_chunks:
            return self._forward(ids, mask, keep, hidden)
        steps = []
        for end in range(self.seen + 1, total + 1):
            step = self._forward(ids[:, :end], None if mask is None else mask[:, :end], 1, hidden)
            if keep == 0 or end > total - keep:
                steps.append(step)
        states = [state for _, state in steps if state is not None]
        return torch.cat([logits for logits, _ in steps], dim=1), torch.cat(states, dim=1) if states else None

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, keep: int, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        member, model = self.member, self.member.model
        device = member.device
        total = ids.shape[1]
        arguments: dict[str, Any] = {"use_cache": self.use_cache, "attention_mask": mask, **self._cache}
        accepted = accepted_arguments(type(model).forward)
        if "position_ids" in accepted:
            if mask is None:
                arguments["position_ids"] = torch.arange(total, device=device)[None]
            else:
                positions = mask.long().cumsum(-1) - 1
                arguments["position_ids"] = positions.masked_fill(mask == 0, 0)
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = keep
        inputs = model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=total - self.seen if self.use_cache else None,
            is_first_iteration=self.seen == 0,
            **arguments,
        )
        with member.active(), captured_head_input(member, hidden) as caught:
            outputs = model(**inputs, return_dict=True)
        self.forward_calls += 1
        if self.use_cache:
            self._cache = returned_state(outputs)
            self.seen = total
            if self._recording:
                self._for_each_cache("activate_past_recording")
        logits = outputs.logits if keep == 0 else outputs.logits[:, -keep:]
        states = caught[-1] if caught else None
        if states is not None and keep:
            states = states[:, -keep:]
        return logits, states

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was; the number of rows may change."""
        for name, cache in self._cache.items():
            if name == "state":
                self._cache[name] = [tensor.index_select(0, rows.to(tensor.device)) for tensor in cache]
            else:
                cache.reorder_cache(rows)

    def record(self) -> None:
        """Keeps what is needed to take columns back."""
        self._recording = True
        self._for_each_cache("activate_past_recording")

    def crop(self, columns: int) -> bool:
        """Takes the last `columns` columns back; a cache that cannot forget is dropped and made anew."""
        cache = self._cache.get("past_key_values")
        if cache is not None and cache.is_croppable:
            cache.crop(-columns)
            self.seen -= columns
        elif columns:
            self.reset()
        return True

    def reset(self) -> None:
        """Forgets everything that was read."""
        self._cache.clear()
        self.seen = 0

    def _for_each_cache(self, method: str) -> None:
        for cache in self._cache.values():
            if hasattr(cache, method):
                getattr(cache, method)()
