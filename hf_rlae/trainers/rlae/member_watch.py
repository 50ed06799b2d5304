"""Finds the member that is at fault when the logits of members are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hf_rlae.errors import NonFiniteError
from hf_rlae.members import Member


@contextmanager
def watch_members(members: Sequence[Member], step: int) -> Iterator[None]:
    """Checks the logits of members within this context, and raises at its end if some were NaN or plus infinity.

    It checks the last column of each forward pass, which the next token is chosen by, and waits for the device only
    once, at the end. Without this check a broken member looks like one that proposes no token. If such logits made
    something else fail first, that error is the cause of this one.

    Source: ours.

    Args:
        members (`Sequence[Member]`): whose forward passes are checked.
        step (`int`): the optimizer step, for the message.

    Raises:
        NonFiniteError: names the members and the step.

    Example:

    >>> from hf_rlae import EnsembleForCausalLM, load_demo_members
    >>> ensemble = EnsembleForCausalLM.from_members(load_demo_members())
    >>> inputs = ensemble.tokenizer(["7+5="], return_tensors="pt")
    >>> with watch_members(ensemble.members, step=3):
    ...     _ = ensemble.generate(**inputs, max_new_tokens=2)
    """
    highest: dict[nn.Module, torch.Tensor] = {}

    def look(model: nn.Module, _arguments: Any, output: Any) -> None:
        newest = output.logits[:, -1].amax()
        highest[model] = torch.maximum(highest.get(model, newest), newest)  # NaN stays NaN

    try:
        with ExitStack() as hooks:
            for model in {member.model: None for member in members}:
                hooks.enter_context(model.register_forward_hook(look))
            yield
    except Exception as error:
        _check_highest(members, highest, step, error)
        raise
    _check_highest(members, highest, step, None)


def _check_highest(
    members: Sequence[Member], highest: dict[nn.Module, torch.Tensor], step: int, cause: Exception | None
) -> None:
    is_bad = {model: not bool(value < torch.inf) for model, value in highest.items()}
    guilty = [str(member.name) for member in members if is_bad.get(member.model, False)]
    if guilty:
        raise NonFiniteError(
            f"logits of {', '.join(guilty)} at step {step} are NaN or infinite in a rollout; check the weights and the "
            "dtype of these members (fp16 overflows where bf16 and fp32 do not)"
        ) from cause
