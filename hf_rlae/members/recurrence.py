"""Finds out, by trial forward passes, how a recurrent model can be run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""The names of the outputs, and arguments, in which models return and accept their cache or state."""


def returned_state(outputs: Any) -> dict[str, Any]:
    """The cache or state that a forward pass returned, as keyword arguments for the next one."""
    return {name: outputs[name] for name in CACHE_NAMES if outputs.get(name) is not None}


@dataclass(frozen=True)
class Recurrence:
    """How a recurrent model can be run.

    Attributes:
        returns_state (`bool`): whether it returns its state. If not, the state stays inside the model, where those of
            several calls would mix.
        reads_chunks (`bool`): whether it can read several tokens at once from a state, with the same result as one by
            one. Mamba, FalconMamba and Jamba in transformers 5.23 start such a chunk from an empty state.
        reads_batches (`bool`): whether the rows of a left-padded batch give the same logits as each row alone. RWKV in
            transformers 5.23 reads padding as text and mixes rows.
    """

    returns_state: bool = True
    reads_chunks: bool = True
    reads_batches: bool = True


def find_recurrence(model: Any, device: torch.device, vocab_size: int) -> Recurrence:
    """Runs a recurrent model on a few tokens to find out how it can be run.

    Args:
        model (`PreTrainedModel`): a recurrent model.
        device (`torch.device`): the device of its input ids.
        vocab_size (`int`): its number of ids.

    Returns:
        `Recurrence`: the result.
    """
    ids = (torch.arange(8, device=device) * 7 % vocab_size)[None]
    whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    stepped = _last_logits(model, ids, (4, 5, 6, 7, 8))
    chunked = _last_logits(model, ids, (4, 8))
    shorter = _last_logits(model, ids[:, 3:], (4, 5))
    both = ids.repeat(2, 1)
    mask = torch.ones_like(both)
    mask[1, :3] = 0
    together = _last_logits(model, both, (7, 8), mask)
    if stepped is None or chunked is None or shorter is None or together is None:
        return Recurrence(returns_state=False)
    tolerance = 10 * float((stepped[0] - whole).abs().max()) + 1e-5 * float(whole.abs().max())
    batch_error = max(_error(together[0], stepped[0]), _error(together[1], shorter[0]))
    return Recurrence(True, _error(chunked[0], whole) <= tolerance, batch_error <= tolerance)


def _error(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


def _last_logits(
    model: Any, ids: torch.Tensor, ends: Sequence[int], mask: torch.Tensor | None = None
) -> torch.Tensor | None:
    """The logits of the last column after reading ids in pieces; `None` if the model returns no state."""
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
