"""The start of a `generate` call: its checks, its cache, and what it adds to the call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.draws import MemberDraws
from hf_rlae.ensemble.end_watch import EndWatch
from hf_rlae.ensemble.faults import MemberFaults
from hf_rlae.ensemble.generation_inputs import check_chat, check_draws, check_generate_inputs, check_prompt_lengths
from hf_rlae.ensemble.images import set_images, take_images
from hf_rlae.ensemble.inputs import check_cached_states
from hf_rlae.ensemble.negative_prompts import add_negative_prompt
from hf_rlae.ensemble.trace import BeamWatch
from hf_rlae.ensemble.warping import check_warping

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


def begin_call(
    model: EnsembleForCausalLM, given: Any, settings: GenerationConfig, kwargs: dict[str, Any]
) -> EnsembleCache:
    """Checks the arguments of `generate`, and adds to them the cache of the call and what watches it.

    Args:
        model (`EnsembleForCausalLM`): the ensemble.
        given (`torch.LongTensor` of shape `(B, L)`): the prompts.
        settings (`GenerationConfig`): the generation settings of the call.
        kwargs (`dict`): the other arguments; `past_key_values`, `logits_processor` and `stopping_criteria` are changed,
            images are taken out.

    Returns:
        `EnsembleCache`: the cache of the call; its `end_generate` must be called in the end.
    """
    images = take_images(model, given, kwargs)
    ids = check_generate_inputs(model, given, settings, kwargs)
    wants_dict = bool(settings.return_dict_in_generate)
    cache: EnsembleCache | None = kwargs.get("past_key_values")
    if cache is None:
        cache = kwargs["past_key_values"] = model.new_cache(settings.use_cache is not False, record=wants_dict)
    check_cached_states(model.engine, cache, cache.policy_or(model.policy))
    set_images(cache, images)
    add_negative_prompt(model, cache, ids, settings, kwargs)
    if not cache.seen and kwargs.get("member_input_ids") is None:
        kwargs |= model.tokenizer.own_prompts(ids, kwargs.get("attention_mask"))
    if not cache.is_continued:
        check_chat(cache, kwargs)
        check_prompt_lengths(model, cache, ids, kwargs)
    config, columns = model.config, int(ids.shape[1])
    draws = None
    if config.draw is not None and cache.may_draw:
        check_draws(settings, kwargs)
        draws = MemberDraws(config.draw, config.draw_scope, model.word_beginnings, cache.draw_numbers)
    elif config.warp == "members":
        check_warping(settings, kwargs)
    beams = settings.num_beams or 1
    repeats = max(beams, settings.num_return_sequences or 1)
    faults = MemberFaults(
        model.members, columns, repeats, config.on_non_finite == "drop", config.on_lost_member == "drop"
    )
    cache.begin_generate(columns, model.policy, draws, faults)
    if model.union is not None:
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), EndWatch(cache)])
    if wants_dict and beams > 1:
        watch = BeamWatch(cache.trace, beams, len(ids))
        kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), watch])
    return cache
