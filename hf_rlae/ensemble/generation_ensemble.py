"""How an ensemble generates: transformers' own `generate`, with the state of its members around it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast, overload

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.custom_generate import make_custom_generate
from hf_rlae.ensemble.generation_call import begin_call
from hf_rlae.ensemble.generation_inputs import check_kinds
from hf_rlae.ensemble.outputs import EnsembleGenerateBeamOutput, EnsembleGenerateOutput, attach_trace
from hf_rlae.ensemble.warping import split_at_warpers
from hf_rlae.errors import InputError, present
from hf_rlae.members import StaticCaches, use_static_caches


class EnsembleGenerationMixin(GenerationMixin):
    """The part of [`EnsembleForCausalLM`] that generates."""

    config: EnsembleConfig

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: EnsembleCache | None = None,
        attention_mask: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `forward`: only the columns that are not in the cache."""
        cache = present(past_key_values, "past_key_values")
        device: torch.device = self.device  # type: ignore[attr-defined]
        columns = input_ids[:, cache.seen :] if input_ids.shape[1] > cache.seen else input_ids
        inputs: dict[str, Any] = {
            "input_ids": columns.to(device),
            "attention_mask": None if attention_mask is None else attention_mask.to(device),
            "past_key_values": cache,
        }
        for name in ("use_cache", "logits_to_keep", "member_input_ids", "member_attention_mask"):
            if name in kwargs:
                inputs[name] = kwargs[name]
        return inputs

    @overload  # type: ignore[override]
    def generate(
        self,
        inputs: torch.Tensor | None = ...,
        generation_config: GenerationConfig | None = ...,
        *,
        return_dict_in_generate: Literal[True],
        **kwargs: Any,
    ) -> EnsembleGenerateOutput | EnsembleGenerateBeamOutput: ...

    @overload
    def generate(
        self,
        inputs: torch.Tensor | None = ...,
        generation_config: GenerationConfig | None = ...,
        *,
        return_dict_in_generate: Literal[False] | None = ...,
        **kwargs: Any,
    ) -> torch.LongTensor: ...

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` with the mixture of the members.

        Args:
            inputs, generation_config, kwargs: as in `transformers.GenerationMixin.generate`. Prompts are padded on
                the left. Images (`pixel_values` and so on, from `processor`) are for the member that sees.

        Returns:
            `torch.LongTensor` of shape `(B, L)`, or with `return_dict_in_generate=True` transformers' output with three
            more fields (see [`EnsembleGenerateOutput`]): `span_weights` `(B, S, M)`, `span_starts` `(S,)` and
            `member_logps` `(B, T, M)`.

        Raises:
            InputError: an empty prompt, right padding, a row without tokens, ids outside the union vocabulary, a
                prompt longer than a member's context; a text that no member can continue and that must not end.
            NonFiniteError: a member's logits are NaN or infinite (see `EnsembleConfig.on_non_finite`).
        """
        given = inputs if inputs is not None else kwargs.get("input_ids")
        check_kinds(generation_config, kwargs)
        settings = self._prepare_generation_config(generation_config, **kwargs)[0]  # type: ignore[misc]
        cache = begin_call(cast(Any, self), given, settings, kwargs)
        try:
            result = super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]
            present(cache.faults, "the faults of a call").read()
        finally:
            cache.end_generate()
        return attach_trace(cast(Any, self), result, cache) if settings.return_dict_in_generate else result

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Members make their own caches; here they learn whether these are static, and how long texts may become."""
        settings = copy.copy(generation_config)
        columns = max(max_cache_length + 1, settings.max_cache_len or 0)
        if settings.use_cache is not False:
            static = StaticCaches(columns, settings, only_compiled=settings.cache_implementation is None)
            use_static_caches(model_kwargs["past_key_values"].runs, static)
        # these hold for members; the rest of `generate` need not look at them
        generation_config.cache_implementation = generation_config.compile_config = None
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """The processors that act on the mixture; those that act on members are put into the cache of the call."""
        processors: LogitsProcessorList = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        cache = (kwargs.get("model_kwargs") or {}).get("past_key_values")
        if self.config.warp == "members" and isinstance(cache, EnsembleCache) and cache.draws is None:
            of_members, processors = split_at_warpers(processors)
            cache.member_processors = of_members or None
        return processors

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: continuous batching (`generate_batch`) keeps keys and values of one model in pages.

        Raises:
            InputError: always.
        """
        raise InputError(
            "continuous batching (`generate_batch`) is not supported, because every member of an ensemble has its own "
            "cache; call `generate` with a padded batch"
        )

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported (see `init_continuous_batching`)."""
        return self.init_continuous_batching()

    def as_custom_generate(self) -> Callable[..., Any]:
        """The argument `custom_generate` for the first member's own `generate`.

        Usage: `model.generate(..., custom_generate=ensemble.as_custom_generate())`, with the first member's model.

        Returns:
            `Callable`: decodes with the ensemble and the settings of the call, and returns ids of the first member's
            tokenizer. If tokenizers differ, a completion with tokens that the first member lacks is encoded from its
            bytes (characters that its tokenizer has no token for are lost). Processors and stopping criteria of the
            call see union ids. transformers does not pass `streamer`, `assistant_model` or `tokenizer` (for
            `stop_strings`) on; use the ensemble's own `generate` for these.
        """
        return make_custom_generate(cast(Any, self))
