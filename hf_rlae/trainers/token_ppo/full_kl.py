"""The KL of a policy to its base model over the full vocabulary, at every token of a rollout."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from hf_rlae.objectives.token_ppo import full_token_kls

MAX_LOGITS = 2**26
"""Logits of one model that are held at once, unless one completion has more: 256 MiB in fp32."""


@torch.no_grad()
def full_kls_of(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_mask: torch.Tensor,
    temperature: float = 1.0,
    autocast: Callable[[], Any] = contextlib.nullcontext,
) -> torch.Tensor:
    """The KL of a model with its active adapter to the model without, given the text before each completion token.

    Two forward passes per completion, in groups of completions whose logits fit into `MAX_LOGITS`.

    Source: ours.

    Args:
        model (`PeftModel`): with an active adapter.
        input_ids, attention_mask (`torch.Tensor` of shape `(B, P + T)`): prompts, padded on the left, and completions.
        completion_mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that count.
        temperature (`float`, defaults to 1.0): of both distributions.
        autocast (callable): returns the context of the forward passes.

    Returns:
        `torch.Tensor` of shape `(B, T)`: in nats, 0 where a token does not count.
    """
    length = completion_mask.shape[1]
    names = inspect.signature(model.get_base_model().forward).parameters
    kept = {"logits_to_keep": length + 1} if "logits_to_keep" in names else {}

    def logits(rows: slice) -> torch.Tensor:
        with autocast():
            found = model(input_ids=input_ids[rows], attention_mask=attention_mask[rows], use_cache=False, **kept)
        return found.logits[:, -length - 1 : -1]  # type: ignore[no-any-return]

    vocab_size = model.get_base_model().config.get_text_config().vocab_size
    step = max(1, MAX_LOGITS // (vocab_size * (length + 1)))
    found = []
    for start in range(0, len(input_ids), step):
        rows = slice(start, start + step)
        own = logits(rows)
        with model.disable_adapter():
            base = logits(rows)
        found.append(full_token_kls(own, base, completion_mask[rows], temperature))
    return torch.cat(found)
