"""Which member went wrong, if the numbers that members give are NaN or infinite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_rlae.errors import NonFiniteError
from hf_rlae.members import Member


class MemberWatch:
    """Within this context, members whose logits are NaN or plus infinity are noticed, and named at its end.

    What the last column of each forward pass says is looked at, the one that the next token is chosen by; the device is
    waited for once, at the end. Without this a broken member looks like one that has nothing to say. Where such numbers
    made something else fail on the way, that error is the cause of this one.

    Source: ours.

    Args:
        members (`Sequence[Member]`): whose forward passes are watched.
        step (`int`): the optimizer step, for the message.

    Raises:
        NonFiniteError: names the members and the step.

    Example:

    >>> from hf_rlae import EnsembleForCausalLM, load_demo_members
    >>> ensemble = EnsembleForCausalLM.from_members(load_demo_members())
    >>> inputs = ensemble.tokenizer(["7+5="], return_tensors="pt")
    >>> with MemberWatch(ensemble.members, step=3):
    ...     _ = ensemble.generate(**inputs, max_new_tokens=2)
    """

    def __init__(self, members: Sequence[Member], step: int) -> None:
        self.members = members
        self.step = step
        self._highest: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> MemberWatch:
        for model in {id(member.model): member.model for member in self.members}.values():
            self._handles.append(model.register_forward_hook(self._look))
        return self

    def _look(self, model: nn.Module, _arguments: Any, output: Any) -> None:
        highest, before = output.logits[:, -1].amax(), self._highest.get(id(model))
        self._highest[id(model)] = highest if before is None else torch.maximum(before, highest)  # NaN stays NaN

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if error is not None and not isinstance(error, Exception):
            return
        is_bad = {model: not bool(highest < torch.inf) for model, highest in self._highest.items()}
        guilty = [str(member.name) for member in self.members if is_bad.get(id(member.model), False)]
        if guilty:
            raise NonFiniteError(
                f"logits of {', '.join(guilty)} at step {self.step} are NaN or infinite while texts are written; look "
                "at that member's weights and dtype (fp16 overflows where bf16 and fp32 do not)"
            ) from error
