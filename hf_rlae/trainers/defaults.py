"""Fields of configurations, and defaults that several of them share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from transformers.hf_argparser import HfArg

option: Callable[..., Any] = HfArg
"""A field with a help text, `option(default=8, help="...")`: transformers' own, with a type that fits any field."""


def default_bf16(fp16: bool, use_cpu: bool) -> bool:
    """Whether bf16 is on where `bf16` is `None`.

    TRL's own default is True. transformers refuses it on a machine without an accelerator, and on a CPU it makes old
    and new log-probabilities differ.

    Args:
        fp16 (`bool`): whether fp16 is on.
        use_cpu (`bool`): whether training stays on the CPU.
    """
    return not fp16 and not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def set_devices(args: Any) -> None:
    """Fills in `bf16` (see `default_bf16`) and, for several processes without an accelerator, `use_cpu`.

    Without `use_cpu`, each of several processes on CPUs believes that it is alone: accelerate 1.15 looks for GPUs.

    Args:
        args (`TrainingArguments`): changed in place, before its own `__post_init__`.
    """
    keep_unset(args)
    if args.bf16 is None:
        args.bf16 = default_bf16(bool(args.fp16), bool(args.use_cpu))
    has_others = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if has_others and not torch.accelerator.is_available() and not (args.bf16 or args.fp16):
        args.use_cpu = True


def keep_unset(args: Any) -> None:
    """Notes which fields are `None` before they are filled in; call it at the start of `__post_init__`.

    A model card shows the settings that a user made, and not what follows from them (see `unset_fields`).

    Args:
        args (`TrainingArguments`): gets an attribute that is no field.
    """
    if "_unset_fields" not in vars(args):  # configurations that inherit call it more than once
        args._unset_fields = {entry.name for entry in fields(args) if getattr(args, entry.name) is None}


def unset_fields(args: Any) -> frozenset[str]:
    """The fields that the user left to be filled in."""
    return frozenset(getattr(args, "_unset_fields", ()))


def set_defaults(args: Any) -> None:
    """Fills in fields that the user left out; call it before the `__post_init__` of `TrainingArguments`.

    * `bf16`, `use_cpu`: see `set_devices`;
    * `metric_for_best_model`: the reward, because a loss of reinforcement learning does not say which model is best;
    * `ddp_find_unused_parameters`: on, because a backward pass may leave out an inactive adapter or head.

    Args:
        args (`TrainingArguments`): changed in place.
    """
    set_devices(args)
    if args.load_best_model_at_end and args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = "reward", True
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True
