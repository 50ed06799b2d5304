"""Options of `generate` in rollouts: which ones are supported, and the logits processors that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from hf_rlae.checks import Bounds, check_number
from hf_rlae.errors import ConfigError, first_sentence, nearest
from hf_rlae.trainers.ratio_bias import NEUTRAL

if TYPE_CHECKING:
    from hf_rlae.ensemble import EnsembleForCausalLM

FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_new_tokens": "max_completion_length",
}
"""Options that are fields of `RLAEConfig` as well, by the name of the field."""

PROCESSORS = (
    "sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_new_tokens",
    "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
"""Options that act in greedy decoding as well."""
_WARPERS = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
SUPPORTED = (*PROCESSORS, *_WARPERS)
"""Options that change the probabilities of tokens, besides those of `FIELDS`."""

_BOUNDS = {
    "min_new_tokens": Bounds(0, is_whole=True),
    "no_repeat_ngram_size": Bounds(2, is_whole=True, note="with 1, the padding of prompts would count"),
    "typical_p": Bounds(above=0, most=1),
    "epsilon_cutoff": Bounds(0, below=1),
    "eta_cutoff": Bounds(0, below=1),
}
"""Values that transformers does not refuse, but ignores."""

_COUNTED = (
    "min_length", "min_new_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty", "stop_strings",
)  # fmt: skip
"""Options that mean something else in the second of several `generate` calls, or that need a tokenizer."""

_GROUPS = "every completion is sampled from random numbers of its own; give num_generations for more of them"
_PADDED = "it counts the padding of prompts, so that completions would depend on their batch"
_IDS = "it is a property of the ensemble; set it in `ensemble.generation_config`"
_REFUSED = {
    "do_sample": "rollouts always sample, and evaluations do with eval_do_sample=True",
    "num_beams": _GROUPS,
    "num_return_sequences": _GROUPS,
    "max_length": f"{_PADDED}; give max_completion_length",
    "min_length": f"{_PADDED}; give min_new_tokens",
    "max_time": "completions would depend on the speed of the machine; give max_completion_length",
    "eos_token_id": _IDS,
    "pad_token_id": _IDS,
    "bos_token_id": _IDS,
    "encoder_repetition_penalty": f"{_PADDED}; give repetition_penalty",
    "encoder_no_repeat_ngram_size": f"{_PADDED}; give no_repeat_ngram_size",
    "remove_invalid_values": "logits that are not finite stop training with an error that names the member",
}
"""Why other options are refused; those without an entry are set by rollouts themselves."""


def check_names(generation_kwargs: Any) -> None:
    """Raises for `generation_kwargs` that rollouts do not support.

    Args:
        generation_kwargs (`dict`, *optional*): as in `transformers.GenerationConfig`.

    Raises:
        ConfigError: names the option, and why it is refused.

    Example:

    >>> check_names({"num_beams": 4})
    Traceback (most recent call last):
    ...
    hf_rlae.errors.ConfigError: generation_kwargs: num_beams=4 is not supported, because every completion is sampled \
from random numbers of its own; give num_generations for more of them
    """
    if generation_kwargs is not None and not isinstance(generation_kwargs, dict):
        raise ConfigError(f"generation_kwargs={generation_kwargs!r}: give a dict, or a JSON object as a string")
    known = {*SUPPORTED, *FIELDS, "stop_strings"}
    others = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for name, value in (generation_kwargs or {}).items():
        if name in known or value is None:
            continue
        if name in others:
            reason = _REFUSED.get(name, "rollouts decide it themselves, or it has no meaning there")
            raise ConfigError(f"generation_kwargs: {name}={value!r} is not supported, because {reason}")
        raise ConfigError(f"generation_kwargs: {name!r} is not an option of `generate`: {nearest(str(name), known)}")


def check_values(ensemble: EnsembleForCausalLM, options: Mapping[str, Any], max_completion_length: int) -> None:
    """Raises for options with values that transformers refuses, and for others that `generate` would add.

    Args:
        ensemble (`EnsembleForCausalLM`): generates.
        options (`Mapping[str, Any]`): of `SUPPORTED` and `FIELDS`.
        max_completion_length (`int`): maximum number of tokens of a completion.

    Raises:
        ConfigError: says which.
    """
    for name, allowed in _BOUNDS.items():
        if name in options and options[name] not in NEUTRAL[name]:
            check_number(f"generation_kwargs: {name}", options[name], allowed)
    least = options.get("min_new_tokens", 0)
    if least > max_completion_length:
        raise ConfigError(
            f"generation_kwargs: min_new_tokens={least} is more than max_completion_length={max_completion_length}; "
            "give fewer"
        )
    try:
        mask = torch.ones(1, 1, dtype=torch.long)
        logits_processors(ensemble, options, mask, max_completion_length, samples=True)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        given = ", ".join(f"{name}={options[name]!r}" for name in options if name in SUPPORTED)
        raise ConfigError(f"generation_kwargs ({given}): {first_sentence(error)}") from error
    for name, value in own_options(ensemble).items():
        if name in options or name in _COUNTED:
            reason = "it would act besides" if name in options else "it would count from another place; give"
            raise ConfigError(
                f"ensemble.generation_config has {name}={value!r}: in rollouts {reason} "
                f"RLAEConfig(generation_kwargs={{{name!r}: ...}}); set it to None in ensemble.generation_config"
            )


def own_options(ensemble: EnsembleForCausalLM) -> dict[str, Any]:
    """The options that the ensemble's `generation_config` adds to every `generate` call."""
    found = {name: getattr(ensemble.generation_config, name, None) for name in dict.fromkeys([*PROCESSORS, *_COUNTED])}
    return {name: value for name, value in found.items() if value is not None and value not in NEUTRAL.get(name, ())}


def logits_processors(
    ensemble: EnsembleForCausalLM, options: Mapping[str, Any], prompt_mask: torch.Tensor, length: int, samples: bool
) -> LogitsProcessorList:
    """transformers' processors for options of `generate`, in transformers' order.

    They count from the end of the prompts, whichever of several `generate` calls they are used in.

    Args:
        ensemble (`EnsembleForCausalLM`): generates.
        options (`Mapping[str, Any]`): of `SUPPORTED` and `FIELDS`.
        prompt_mask (`torch.LongTensor` of shape `(B, L)`): 1 for tokens of the prompts, 0 for padding.
        length (`int`): maximum number of tokens of a completion.
        samples (`bool`): `False` leaves out those that only sampling has, such as `temperature`.
    """
    model: Any = ensemble
    columns, ends = prompt_mask.shape[1], model.generation_config.eos_token_id
    settings: Any = GenerationConfig(**options, do_sample=True, max_length=columns + length)
    settings.do_sample = samples  # transformers warns of options of sampling in a greedy config
    settings._eos_token_tensor = None if ends is None else torch.tensor(ends, device=model.device).flatten()
    processors: LogitsProcessorList = model._get_logits_processor(
        settings, columns, device=model.device, model_kwargs={"attention_mask": prompt_mask}
    )
    return processors
