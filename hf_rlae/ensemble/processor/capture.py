"""Captures the outputs of the model in whose plain `generate` an ensemble decodes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_rlae.members import Member
from hf_rlae.members.recurrence import returned_state


@dataclass(frozen=True)
class HostPass:
    """The inputs and outputs of one forward pass of the host.

    Attributes:
        last_ids (`torch.LongTensor` of shape `(B,)`): the ids of the last column.
        columns (`int`): number of columns.
        mask (`torch.Tensor` of shape `(B, L)` or `None`): the attention mask, if it is 2-D.
        has_mask (`bool`): whether `mask` marks the padding (`None` for no padding); `False` if the host got a mask of
            another kind.
        logits (`torch.Tensor` of shape `(B, V)`): the logits of the last column.
        hidden (`torch.Tensor` of shape `(B, n, H)` or `None`): the input of the head in the newest columns: as many as
            the policy needs, or as the pass has.
        cache: the key-value cache that the host returned, or `None`.
    """

    last_ids: torch.Tensor
    columns: int
    mask: torch.Tensor | None
    has_mask: bool
    logits: torch.Tensor
    hidden: torch.Tensor | None
    cache: Any


class HostCapture:
    """Keeps the newest forward pass of the host, per thread, until `take` is called.

    `generate` runs the host before it calls a processor for the first time, so the hooks are registered by `attach`,
    before any call. They do not change what the caller of the host gets, and they keep as few
    columns as possible. A copied or pickled model gets a `HostCapture` that is not attached. Copies of a processor
    share one: of two sets of hooks, the second would see only the columns that the first one leaves.
    """

    def __init__(self) -> None:
        self._hidden_tokens: Callable[[], int] = int
        self._local = threading.local()
        self._handles: list[Any] = []
        self._num_owners = 0

    def __reduce__(self) -> tuple[type[HostCapture], tuple[()]]:
        return HostCapture, ()

    def attach(self, member: Member, hidden_tokens: Callable[[], int]) -> None:
        """Registers the hooks; they are removed with the last owner (see `keep_for`).

        Args:
            member (`Member`): the host.
            hidden_tokens (callable): returns the number of newest columns whose head inputs are kept.
        """
        self._hidden_tokens = hidden_tokens
        self._handles = [
            member.model.register_forward_pre_hook(self._widen, with_kwargs=True),
            member.model.register_forward_hook(self._note, with_kwargs=True),
            member.model.get_output_embeddings().register_forward_pre_hook(self._note_hidden),
        ]

    def keep_for(self, owner: object) -> None:
        """Keeps the hooks as long as `owner` exists."""
        self._num_owners += 1
        weakref.finalize(owner, self._release)

    def _release(self) -> None:
        self._num_owners -= 1
        if not self._num_owners:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def take(self) -> HostPass | None:
        """Returns and removes the newest pass of this thread; `None` if there is none."""
        self._local.__dict__.pop("hidden", None)
        return self._local.__dict__.pop("last", None)

    def _widen(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Raises `logits_to_keep`, so that all columns of a mean reach the head; `_note_hidden` cuts them again."""
        self._local.__dict__.pop("asked", None)
        asked = kwargs.get("logits_to_keep")
        wanted = self._hidden_tokens() if self._handles else 0
        if not isinstance(asked, int) or not 0 < asked < wanted:
            return None
        self._local.asked = asked
        return args, {**kwargs, "logits_to_keep": wanted}

    def _note_hidden(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        asked = self._local.__dict__.pop("asked", None)
        wanted = self._hidden_tokens() if self._handles else 0
        if wanted:
            self._local.hidden = args[0][:, -wanted:].detach().clone()
        return None if asked is None else (args[0][:, -asked:], *args[1:])

    def _note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = self._local.__dict__.pop("hidden", None)
        self._local.__dict__.pop("last", None)
        ids = kwargs.get("input_ids", args[0] if args else None)
        logits = getattr(output, "logits", None)
        if not self._handles or not isinstance(ids, torch.Tensor) or logits is None:
            return
        mask = kwargs.get("attention_mask")
        self._local.last = HostPass(
            ids[:, -1].detach().clone(),
            ids.shape[1],
            mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None,
            mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2),
            logits[:, -1].detach().clone(),
            hidden,
            next(iter(returned_state(output).values()), None),
        )
