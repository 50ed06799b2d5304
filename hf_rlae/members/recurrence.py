"""What a recurrent model can do with its state, found out by trying."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""Under which names models return what they remember, and take it back."""


def returned_state(outputs: Any) -> dict[str, Any]:
    """What a forward pass returned of the model's memory, as arguments for the next one."""
    return {name: outputs[name] for name in CACHE_NAMES if outputs.get(name) is not None}


@dataclass(frozen=True)
class Recurrence:
    """How a model may be run.

    Attributes:
        returns_state (`bool`): it hands its memory out; else it keeps it inside, where calls would mix.
        reads_chunks (`bool`): it reads several tokens at once on top of a state as it reads them one by one. Mamba,
            FalconMamba and Jamba in transformers 5.23 begin such a chunk from an empty state.
        reads_batches (`bool`): the rows of a left-padded batch are what they are alone. RWKV in transformers 5.23
            reads padding as text and mixes rows.
    """

    returns_state: bool = True
    reads_chunks: bool = True
    reads_batches: bool = True


def find_recurrence(model: Any, device: torch.device, vocab_size: int) -> Recurrence:
    """Tries a recurrent model on a few tokens.

    Args:
        model (`PreTrainedModel`): recurrent.
        device (`torch.device`): where it takes its ids.
        vocab_size (`int`): of the model.
    """
    ids = (torch.arange(8, device=device) * 7 % vocab_size)[None]
    whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    stepped = _last_logits(model, ids, (4, 5, 6, 7, 8))
    if stepped is None:
        return Recurrence(returns_state=False)
    tolerance = 10 * float((stepped[0] - whole).abs().max()) + 1e-5 * float(whole.abs().max())
    chunked = _last_logits(model, ids, (4, 8))
    assert chunked is not None
    shorter = _last_logits(model, ids[:, 3:], (4, 5))
    both = ids.repeat(2, 1)
    mask = torch.ones_like(both)
    mask[1, :3] = 0
    together = _last_logits(model, both, (7, 8), mask)
    assert shorter is not None
    assert together is not None
    batch_error = max(_error(together[0], stepped[0]), _error(together[1], shorter[0]))
    return Recurrence(True, _error(chunked[0], whole) <= tolerance, batch_error <= tolerance)


def _error(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


def _last_logits(
    model: Any, ids: torch.Tensor, ends: Sequence[int], mask: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Reads ids in pieces; the logits of the last column, or `None` if no state came back."""
    takes_mask = mask is not None and "attention_mask" in inspect.signature(type(model).forward).parameters
    state: dict[str, Any] = {}
    begin = 0
    outputs: Any = None
    for end in ends:
        arguments = {"attention_mask": mask[:, :end]} if takes_mask and mask is not None else {}
        outputs = model(input_ids=ids[:, begin:end], use_cache=True, return_dict=True, **arguments, **state)
        state = returned_state(outputs)
        if not state:
            return None
        begin = end
    return outputs.logits[:, -1].float()
