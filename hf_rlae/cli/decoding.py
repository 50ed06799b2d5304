"""What the arguments of `add_decoding` mean for `generate`, and prompts that are chats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, first_sentence


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `generate`.

    Args:
        args (`argparse.Namespace`): with the checked arguments of `add_decoding`.
    """
    # a member's own settings may contain beams, which cannot be streamed
    beams = getattr(args, "num_beams", None) or 1
    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "do_sample": args.sample, "num_beams": beams}
    if args.sample:
        # transformers' default is top_k=50
        options |= {"temperature": args.temperature or 1.0, "top_p": args.top_p or 1.0, "top_k": args.top_k or 0}
    return options


def encode_chats(
    ensemble: EnsembleForCausalLM, conversations: Sequence[Sequence[dict[str, str]]], option: str
) -> dict[str, torch.Tensor]:
    """The ids of conversations, rendered with each member's chat template.

    Args:
        ensemble (`EnsembleForCausalLM`): whose tokenizer renders.
        conversations (`Sequence[list[dict]]`): the messages of each.
        option (`str`): what asks for it, for the message.

    Raises:
        ConfigError: a member has no chat template, or its template fails.
    """
    try:
        return dict(ensemble.tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True))
    except ValueError as error:
        raise ConfigError(
            f"{option}: {first_sentence(error).partition(';')[0].rstrip('.')}. Give --chat-template FILE, or members "
            "that were trained to chat"
        ) from error
