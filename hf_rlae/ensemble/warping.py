"""Temperature, top-p and the like for each member's own distribution, instead of for the mixture."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.logits_process import TopHLogitsWarper

from hf_rlae.ensemble.end_watch import EndWatch
from hf_rlae.errors import InputError

WARPS = ("mixture", "members")
"""The values of `EnsembleConfig.warp`."""

_WARPERS = (
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)


def check_warping(settings: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raises `InputError` for decoding methods in which members cannot be warped one by one."""
    if not settings.do_sample and not any(
        isinstance(entry, _WARPERS) for entry in kwargs.get("logits_processor") or ()
    ):
        return  # nothing to warp
    if (settings.num_beams or 1) > 1:
        given = f"num_beams={settings.num_beams}"
        reason = "beams are compared by the mixture's probabilities"
    elif kwargs.get("assistant_model") is not None or settings.prompt_lookup_num_tokens:
        given = "assistant_model" if kwargs.get("assistant_model") is not None else "prompt_lookup_num_tokens"
        reason = "proposed tokens are accepted by the mixture's probabilities"
    elif settings.guidance_scale not in (None, 1):
        given = f"guidance_scale={settings.guidance_scale}"
        reason = "guidance compares mixtures"
    else:
        return
    raise InputError(
        f"{given} with warp='members': {reason}; leave it out, sample without it, or build the ensemble with "
        "warp='mixture'"
    )


def split_at_warpers(processors: LogitsProcessorList) -> tuple[LogitsProcessorList, LogitsProcessorList]:
    """Splits the processors of a call into those that act on each member and those that act on the mixture.

    Warpers have to see what earlier processors leave, so everything up to the last warper acts on each member, as it
    does on a drawn member.

    Args:
        processors (`LogitsProcessorList`): in the order of `generate`.
    """
    last = max((place for place, entry in enumerate(processors) if isinstance(entry, _WARPERS)), default=-1)
    before = processors[: last + 1]
    watches = [entry for entry in before if isinstance(entry, EndWatch)]
    of_members = [entry for entry in before if not isinstance(entry, EndWatch)]
    return LogitsProcessorList(of_members), LogitsProcessorList([*watches, *processors[last + 1 :]])


def warped(processors: LogitsProcessorList, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """One member's scores `(B, V)` after the processors, in fp32 and on the device of `ids` `(B, L)`."""
    copied = scores.to(device=ids.device, dtype=torch.float32, copy=True)
    return processors(ids, copied)  # type: ignore[arg-type]
