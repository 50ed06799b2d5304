"""Negative prompts: what all members but the first read in place of the prompt, for mixings that compare members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from hf_rlae.ensemble.chats.member_chats import padded
from hf_rlae.ensemble.engines.protocol import EngineCall
from hf_rlae.ensemble.inputs import check_ids, mask_checks, raise_first
from hf_rlae.ensemble.mixing import has_trait
from hf_rlae.errors import InputError

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_NAMES = ("negative_prompt_ids", "negative_prompt_attention_mask")


def add_negative_prompt(
    model: EnsembleForCausalLM,
    cache: EnsembleCache,
    ids: torch.Tensor,
    settings: GenerationConfig,
    kwargs: dict[str, Any],
) -> None:
    """Turns the negative prompt of a `generate` call into the members' own prompts.

    Args:
        model (`EnsembleForCausalLM`), cache (`EnsembleCache`): the ensemble and the cache of the call.
        ids (`torch.LongTensor` of shape `(B, L)`): the prompts.
        settings (`GenerationConfig`): of the call.
        kwargs (`dict`): the arguments of `generate`; `negative_prompt_ids` and their mask become `member_input_ids` and
            `member_attention_mask`.

    Raises:
        InputError: ids or a mask that do not fit; a negative prompt that no member would read; a `guidance_scale`
            beside `mixing="guidance"`.
    """
    mixing, name, scale = model.engine.mixing, model.config.mixing, settings.guidance_scale
    if not has_trait(mixing, "compares_members"):
        if kwargs.get("negative_prompt_ids") is not None and scale in (None, 1):
            raise InputError(
                f"negative_prompt_ids has no effect with mixing={name!r} and guidance_scale={scale}; give a "
                "guidance_scale, or build the ensemble with mixing='guidance'"
            )
        return
    is_guided = has_trait(mixing, "reads_negative_prompt")
    if is_guided and scale not in (None, 1):
        raise InputError(
            f"guidance_scale={scale} in `generate`: an ensemble with mixing={name!r} has its own; build it with "
            f"mixing_kwargs={{'guidance_scale': {scale}}}, and leave guidance_scale out"
        )
    given, given_mask = (kwargs.pop(name, None) for name in _NAMES)
    if cache.seen:
        if given is not None:
            raise InputError(
                "negative_prompt_ids with past_key_values: the members have read their prompts; leave one of both out"
            )
        return
    own = kwargs.get("member_input_ids")
    # a rendered chat is the same prompt for all members that share a template
    has_own = own is not None and not bool((own == own[:, :1]).all())
    if given is None and (has_own or not is_guided):
        return
    if given is None:
        given = ids[:, -1:]
    else:
        _check(model, given, given_mask, len(ids))
    kwargs["member_input_ids"], kwargs["member_attention_mask"] = own_prompts(
        cache.call, (ids, kwargs.get("attention_mask")), (given.to(ids.device), given_mask)
    )


def _check(model: EnsembleForCausalLM, ids: Any, mask: Any, rows: int) -> None:
    """Raises `InputError` for a negative prompt of a wrong kind or number of rows."""
    checks = check_ids(model, ids, "negative_prompt_ids")
    if len(ids) not in (1, rows):
        raise InputError(f"negative_prompt_ids has {len(ids)} rows for {rows} prompts; give one row, or one per prompt")
    if mask is not None:
        checks += mask_checks(ids, mask, ids.shape[1], "negative_prompt_")
    raise_first(checks)


def own_prompts(
    call: EngineCall,
    prompt: tuple[torch.Tensor, torch.Tensor | None],
    negative: tuple[torch.Tensor, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The members' own prompts and their mask, `(B, M, L')`: the first reads the prompt, the others the negative one.

    Args:
        call (`EngineCall`): the members' runs, which know the members' ids.
        prompt, negative: ids `(B, L)` and their mask, 1 = keep; one row of a negative prompt is for all.
    """
    firsts, others = call.encoded(*prompt), call.encoded(*negative)
    if len(others) == 1:
        others = others * len(firsts)
    rows: list[Sequence[int]] = []
    for first, other in zip(firsts, others, strict=True):
        rows += [first[0], *other[1:]]
    ids, mask = padded(rows, 0)
    shape, device = (len(firsts), len(firsts[0]), -1), prompt[0].device
    return ids.view(shape).to(device), mask.view(shape).to(device)


def default_prompts(
    model: EnsembleForCausalLM, cache: EnsembleCache, starts: torch.Tensor, is_known: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The members' own prompts in a `forward` without `member_input_ids`, as `generate` makes them by default.

    Args:
        model (`EnsembleForCausalLM`), cache (`EnsembleCache`): the ensemble and the state of the call.
        starts (`torch.LongTensor` of shape `(B,)`): the column of the first token of each completion.
        is_known (`bool`): whether the columns are given, or follow from labels.

    Raises:
        InputError: the prompt is needed, and its length is unknown.
    """
    if cache.in_generate or not has_trait(model.engine.mixing, "reads_negative_prompt"):
        return None, None
    if not is_known or bool((starts <= cache.first_columns()).any()):
        raise InputError(
            f"mixing={model.config.mixing!r} compares two prompts, and the length of the prompt is unknown or 0; pass "
            "prompt_length, or labels that are -100 on the prompt"
        )
    columns = torch.arange(cache.ids.shape[1]) < starts[:, None]
    kept = columns if cache.mask is None else columns & cache.mask.bool().cpu()
    last = cache.ids.gather(1, starts[:, None].to(cache.ids.device) - 1)
    return own_prompts(cache.call, (cache.ids, kept), (last, None))
