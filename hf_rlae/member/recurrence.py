"""What a recurrent model can do with its state, found out by trying."""

from __future__ import annotations

from typing import Any

import torch

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""Under which names models return what they remember, and take it back."""


def returned_state(outputs: Any) -> dict[str, Any]:
    """What a forward pass returned of the model's memory, as arguments for the next one."""
    return {name: outputs[name] for name in CACHE_NAMES if outputs.get(name) is not None}


def reads_chunks(model: Any, device: torch.device, vocab_size: int) -> bool | None:
    """Whether a recurrent model reads several tokens at once on top of a state as it reads them one by one.

    Some (Mamba, FalconMamba and Jamba in transformers 5.23) begin such a chunk from an empty state.

    Args:
        model (`PreTrainedModel`): recurrent.
        device (`torch.device`): where it takes its ids.
        vocab_size (`int`): of the model.

    Returns:
        `bool`, or `None` if the model returns no state at all: it keeps it inside, where calls would mix.
    """
    ids = (torch.arange(8, device=device) * 7 % vocab_size)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        last = []
        for ends in ((4, 8), (4, 5, 6, 7, 8)):
            state: dict[str, Any] = {}
            begin = 0
            for end in ends:
                outputs = model(input_ids=ids[:, begin:end], use_cache=True, return_dict=True, **state)
                state = returned_state(outputs)
                if not state:
                    return None
                begin = end
            last.append((outputs.logits[0, -1].float() - whole).abs().max())
    chunk_error, step_error = (float(error) for error in last)
    return chunk_error <= 10 * step_error + 1e-5 * float(whole.abs().max())
