"""An ensemble as the decoding loop of a plain model: `model.generate(..., custom_generate=...)`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from hf_rlae.errors import InputError
from hf_rlae.vocabulary import token_ids

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


def make_custom_generate(ensemble: EnsembleForCausalLM) -> Callable[..., Any]:
    """See [`EnsembleForCausalLM.as_custom_generate`]."""

    def decode(
        model: Any,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        host = ensemble.members[0]
        first: Any = host.model
        if model is not first:
            raise InputError(
                f"custom_generate: the ensemble's first member is {host.name}, but `generate` was called on another "
                f"model ({getattr(model, 'name_or_path', '') or type(model).__name__}); call it on the first member"
            )
        if (model_kwargs.get("mm_encoder_outputs") or {}).get("image") is not None:
            raise InputError(
                "custom_generate: the prompt has images, which `generate` has encoded already; pass "
                "`logits_processor=[EnsembleLogitsProcessor(ensemble)]`, or call the ensemble's own `generate`"
            )
        # `generate` has repeated the rows for beams and samples, and the ensemble's `generate` repeats them again
        repeats = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        mask = model_kwargs.get("attention_mask")
        settings = host_settings(ensemble, generation_config)
        settings.max_time = None  # its criterion is passed on, because the time runs from the start of the call
        # both lists have entries that `generate` made from its settings; the ensemble's `generate` makes them again for
        # union ids, so only the entries of the user are passed on
        made = first._get_logits_processor(
            generation_config, input_ids_seq_length=input_ids.shape[1], device=input_ids.device
        )
        length = MaxLengthCriteria(generation_config.max_length, getattr(first.config, "max_position_embeddings", None))
        result: Any = ensemble.generate(
            input_ids[::repeats],
            settings,
            # `generate` passes no mask if nothing is masked
            attention_mask=torch.ones_like(input_ids[::repeats]) if mask is None else mask[::repeats],
            logits_processor=LogitsProcessorList(_others(logits_processor, made)),
            stopping_criteria=StoppingCriteriaList(
                criterion
                for criterion in _others(stopping_criteria, [length])
                if not isinstance(criterion, EosTokenCriteria)
            ),
        )
        return in_host_ids(ensemble, result, input_ids.shape[1])

    return decode


def in_host_ids(ensemble: EnsembleForCausalLM, result: Any, columns: int) -> Any:
    """What `generate` of an ensemble returned for prompts of `columns` ids, in ids of the first member's tokenizer."""
    pad = ensemble.generation_config.pad_token_id
    if isinstance(result, torch.Tensor):
        return ensemble.engine.to_first_member(result, columns, pad)
    result.sequences = ensemble.engine.to_first_member(result.sequences, columns, pad)
    return result


def host_settings(ensemble: EnsembleForCausalLM, given: GenerationConfig) -> GenerationConfig:
    """The settings of the call, with the ensemble's special tokens."""
    host, own = ensemble.members[0], ensemble.generation_config
    settings = copy.deepcopy(given)
    settings.pad_token_id, settings.bos_token_id = own.pad_token_id, own.bos_token_id
    settings.cache_implementation = None  # the host's; every member makes its own cache
    if settings.max_new_tokens is not None:  # `generate` has set the length of the whole text from it; the same below
        settings.max_length = None
    if settings.min_new_tokens is not None:
        settings.min_length = None
    ends = sorted(token_ids(given.eos_token_id))
    if ends == sorted(token_ids(getattr(host.generation_config, "eos_token_id", None))):
        settings.eos_token_id = own.eos_token_id
    else:
        settings.eos_token_id = sorted(set(ensemble.engine.to_union(torch.tensor(ends)).tolist())) or None
    return settings


def _others(given: Iterable[Any], made: Sequence[Any]) -> list[Any]:
    """The entries of `given` that equal no entry of `made`."""
    return [entry for entry in given if not any(_is_equal(entry, other) for other in made)]


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two processors or criteria have the same class and the same attributes."""
    if type(one) is not type(other) or vars(one).keys() != vars(other).keys():
        return False
    return all(_have_equal_values(value, vars(other)[name]) for name, value in vars(one).items())


def _have_equal_values(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_have_equal_values, one, other))
    return one is other or bool(one == other)
