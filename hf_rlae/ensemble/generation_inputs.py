"""Checks of the arguments of `generate`, before a member runs."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from hf_rlae.ensemble.inputs import Check, check_cache, check_ids, check_member_inputs, mask_checks, raise_first
from hf_rlae.errors import InputError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_LEAST = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
}
"""Settings that must be whole numbers, and their smallest values."""

_OF_FORWARD = {
    "labels": "they are an argument of `forward`",
    "prompt_length": "it is an argument of `forward`; in `generate` the prompt is the whole of input_ids",
    "position_ids": "the positions follow from attention_mask, in each member's own tokens",
}
"""Arguments that transformers accepts in `generate`, because `forward` has them or models take them."""


def check_kinds(generation_config: Any, kwargs: dict[str, Any]) -> None:
    """Raises `InputError` for arguments of `generate` of a wrong kind, before transformers reads the settings."""
    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        raise InputError(
            f"generation_config must be a GenerationConfig, got {type(generation_config).__name__}; pass "
            "`GenerationConfig(...)`, or the settings as keyword arguments"
        )
    for name, kind in (("logits_processor", "LogitsProcessorList"), ("stopping_criteria", "StoppingCriteriaList")):
        given = kwargs.get(name)
        if given is not None and not (isinstance(given, list | tuple) and all(map(callable, given))):
            raise InputError(f"{name} must be a list of callables, got {given!r}; pass a {kind}")
    streamer = kwargs.get("streamer")
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise InputError(
            f"streamer must have the methods `put` and `end`, got {type(streamer).__name__}; pass a "
            "`TextStreamer(ensemble.tokenizer)`"
        )
    _check_counts(kwargs)


def _check_counts(given: Mapping[str, Any]) -> None:
    for name, least in _LEAST.items():
        value = given.get(name)
        try:
            is_fine = value is None or (not isinstance(value, bool) and operator.index(value) >= least)
        except TypeError:
            is_fine = False
        if not is_fine:
            raise InputError(f"{name}={value!r}: give a whole number of at least {least}")


def check_generate_inputs(
    model: EnsembleForCausalLM, ids: Any, settings: GenerationConfig, kwargs: dict[str, Any]
) -> torch.Tensor:
    """The prompt's ids; `InputError` for invalid arguments of `generate`. `settings` are those of the call."""
    if kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds is not supported, because members have different embeddings; pass input_ids")
    for name, reason in _OF_FORWARD.items():
        if kwargs.get(name) is not None:
            raise InputError(f"{name} has no effect in `generate`: {reason}; leave {name} out")
    _check_settings(settings)
    model.engine.check_generation(settings)
    if ids is None:
        raise InputError(
            "input_ids is missing: pass a prompt, `ensemble.generate(**ensemble.tokenizer(texts, "
            "return_tensors='pt', padding=True))`"
        )
    check_prompts(model, ids, kwargs.get("attention_mask"))
    cache = kwargs.get("past_key_values")
    if cache is not None:
        repeats = max(settings.num_beams or 1, settings.num_return_sequences or 1)
        if getattr(cache, "is_continued", False):
            _check_continued(cache, ids)
        check_cache(model, cache, ids.shape[0] * repeats)
        _check_cached_text(cache, ids, kwargs.get("attention_mask"), repeats)
    return ids


def _check_settings(settings: GenerationConfig) -> None:
    _check_counts({name: getattr(settings, name, None) for name in _LEAST})
    if settings.cache_implementation not in (None, "static"):
        raise InputError(
            f"cache_implementation={settings.cache_implementation!r} is not supported: every member has its own cache, "
            "which can be 'static'; pass that, or leave cache_implementation out"
        )
    if settings.assistant_early_exit is not None:
        raise InputError(
            f"assistant_early_exit={settings.assistant_early_exit} is not supported: an ensemble has no layers of its "
            "own; pass one of the members as assistant_model, or leave assistant_early_exit out"
        )


def check_prompts(model: EnsembleForCausalLM, ids: Any, mask: Any) -> None:
    """Raises `InputError` for ids and a mask that are not prompts padded on the left."""
    checks = check_ids(model, ids, "input_ids")
    if mask is not None:
        checks += mask_checks(ids, mask, ids.shape[1])
        checks.append(Check((mask[:, -1] != 0).all(), lambda: _right_padding(mask)))
    raise_first(checks)


def _right_padding(mask: torch.Tensor) -> str:
    return (
        f"attention_mask ends with 0 in row {int((mask[:, -1] == 0).nonzero()[0])}: prompts must be padded on the "
        "left; set `tokenizer.padding_side = 'left'`"
    )


def _check_cached_text(cache: EnsembleCache, ids: torch.Tensor, mask: torch.Tensor | None, repeats: int) -> None:
    """Raises `InputError` for ids that do not continue the text in a cache; padding is not compared."""
    seen = cache.seen
    if not seen:
        return
    if ids.shape[1] <= seen:
        raise InputError(
            f"input_ids has {ids.shape[1]} columns, but past_key_values has read {seen} already; pass the whole text, "
            "which is longer (after `cache.crop(-1)` the last column is read again), or leave past_key_values out"
        )
    cached = cache.ids[:, :seen]
    is_same = ids[:, :seen].repeat_interleave(repeats, 0).to(cached.device) == cached
    for padding in (cache.mask, mask if mask is None else mask.repeat_interleave(repeats, 0)):
        if padding is not None:
            is_same |= padding[:, :seen].to(cached.device) == 0
    if not bool(is_same.all()):
        row, column = (~is_same).nonzero()[0].tolist()
        raise InputError(
            f"input_ids differs from the text in past_key_values at column {column} of row {row}: this cache belongs "
            "to another prompt; pass the text that it has read and what follows, or leave past_key_values out"
        )


def check_draws(settings: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raises `InputError` for decoding methods that cannot draw members, and logs how warping acts with draws.

    A logits processor with a true attribute `draws_tokens` samples the token itself and leaves only this token.
    """
    is_drawn = any(getattr(entry, "draws_tokens", False) for entry in kwargs.get("logits_processor") or ())
    if not settings.do_sample and not is_drawn:
        raise InputError(
            "do_sample=False with draw: the most likely token of a drawn member is not that of the mixture; pass "
            "do_sample=True, or build the ensemble with draw=None"
        )
    if (settings.num_beams or 1) > 1:
        raise InputError(
            f"num_beams={settings.num_beams} with draw: beam search needs the probabilities of the mixture; pass "
            "num_beams=1, or build the ensemble with draw=None"
        )
    if kwargs.get("assistant_model") is not None or settings.prompt_lookup_num_tokens:
        raise InputError(
            "assisted decoding with draw: accepting proposed tokens needs the probabilities of the mixture; leave "
            "assistant_model and prompt_lookup_num_tokens out, or build the ensemble with draw=None"
        )
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    warped = [name for name in plain if getattr(settings, name) not in (None, plain[name])]
    if warped:
        logger.info(
            "%s act on the drawn member: tokens are sampled from the mixture of the members' warped distributions, not "
            "from the warped mixture",
            ", ".join(f"{name}={getattr(settings, name)}" for name in warped),
        )


def check_prompt_lengths(
    model: EnsembleForCausalLM, cache: EnsembleCache, ids: torch.Tensor, kwargs: dict[str, Any]
) -> None:
    """Raises `InputError` for a prompt that is longer than some member's context, in that member's own tokens."""
    if len(model.members) == 1:
        return
    own, own_mask = kwargs.get("member_input_ids"), kwargs.get("member_attention_mask")
    check_member_inputs(model, own, own_mask, ids.shape[0])
    if own is not None:
        lengths = [own.shape[2]] * own.shape[1] if own_mask is None else own_mask.sum(2).amax(0).tolist()
    else:
        lengths = cache.call.prompt_lengths(ids, kwargs.get("attention_mask"))
    for member, length in zip(model.members, lengths, strict=True):
        if member.context_length is not None and length > member.context_length:
            raise InputError(
                f"input_ids: the prompt has {length} tokens for member {member.name}, whose context has "
                f"{member.context_length}; shorten the prompt or leave the member out"
            )


def check_chat(cache: EnsembleCache, kwargs: dict[str, Any]) -> None:
    """Raises `InputError` for the cache of a chat with different tokenizers, which cannot be continued.

    Members that share a tokenizer have read their own prompts and all tokens since. With different tokenizers the old
    prompt would be read again.
    """
    if cache.seen and (cache.call.rereads_own_prompts or kwargs.get("member_input_ids") is not None):
        raise InputError(
            "past_key_values belongs to a chat, in which every member has read its own prompt; render the whole "
            "conversation with `ensemble.tokenizer.apply_chat_template`, and leave past_key_values out"
        )


def _check_continued(cache: EnsembleCache, ids: torch.Tensor) -> None:
    """Raises `InputError` for ids that do not have the shape of the texts in the cache."""
    expected = (cache.batch_size, cache.seen + 1)
    if tuple(ids.shape) != expected:
        raise InputError(
            f"input_ids has shape {tuple(ids.shape)}, but the texts of the cache have shape {expected} (rows that were "
            "kept, columns with the last token); pass their `sequences`, or a new cache"
        )
