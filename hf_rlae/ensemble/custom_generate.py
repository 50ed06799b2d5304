"""An ensemble in the place of a plain model's decoding loop: `model.generate(..., custom_generate=...)`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from hf_rlae.errors import InputError
from hf_rlae.vocabulary import ByteVocabulary

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
        # `generate` has repeated rows for beams and samples, and the ensemble's own will do so again
        repeats = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        mask = model_kwargs.get("attention_mask")
        # of the list, what `generate` made from its settings is made anew for the ensemble, which has other ids
        made = first._get_logits_processor(
            generation_config, input_ids_seq_length=input_ids.shape[1], device=input_ids.device
        )
        made_kinds = {type(processor) for processor in made}
        options: dict[str, Any] = {
            # `generate` hands on no mask where nothing is masked
            "attention_mask": torch.ones_like(input_ids[::repeats]) if mask is None else mask[::repeats],
            "logits_processor": LogitsProcessorList(p for p in logits_processor if type(p) not in made_kinds),
            # the ensemble has end tokens of its own
            "stopping_criteria": StoppingCriteriaList(
                criterion for criterion in stopping_criteria if not isinstance(criterion, EosTokenCriteria)
            ),
        }
        result: Any = ensemble.generate(input_ids[::repeats], _settings(ensemble, generation_config), **options)
        if ensemble.union is None:
            return result
        width = input_ids.shape[1]
        if isinstance(result, torch.Tensor):
            return _host_ids(ensemble, result, width)
        result.sequences = _host_ids(ensemble, result.sequences, width)
        return result

    return decode


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _settings(ensemble: EnsembleForCausalLM, given: GenerationConfig) -> GenerationConfig:
    """The settings of the call, with the ensemble's own special tokens."""
    host, own = ensemble.members[0], ensemble.generation_config
    settings = copy.deepcopy(given)
    settings.pad_token_id, settings.bos_token_id = own.pad_token_id, own.bos_token_id
    if settings.max_new_tokens is not None:  # `generate` has made lengths of the whole text from these
        settings.max_length = None
    if settings.min_new_tokens is not None:
        settings.min_length = None
    usual = _ids(getattr(host.generation_config, "eos_token_id", None))
    if sorted(_ids(given.eos_token_id)) == sorted(usual):
        settings.eos_token_id = own.eos_token_id
    elif ensemble.union is not None:
        stop = ensemble.union.stop_id
        ends = {stop if i in host.end_ids else i for i in _ids(given.eos_token_id)}
        settings.eos_token_id = sorted(ends) or None
    return settings


def _host_ids(ensemble: EnsembleForCausalLM, sequences: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of union ids as rows of the host's; prompts stay as they are, completions are padded on the right."""
    host = ensemble.members[0]
    vocabulary: ByteVocabulary = ensemble.engine.vocabularies[0]  # type: ignore[union-attr]
    stop = ensemble.union.stop_id  # type: ignore[union-attr]
    wanted = _ids(getattr(host.generation_config, "eos_token_id", None))
    ends = [i for i in wanted if i in host.end_ids] or list(host.end_ids)
    rows = []
    for row in sequences[:, width:].tolist():
        ended = stop in row
        ids = _completion(ensemble, vocabulary, row[: row.index(stop)] if ended else row)
        rows.append(ids + ends[:1] if ended else ids)
    pad = ensemble.generation_config.pad_token_id
    if pad is None or pad >= vocabulary.size:
        pad = ends[0] if ends else 0
    longest = max(map(len, rows))
    tail = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=sequences.dtype)
    return torch.cat([sequences[:, :width], tail.to(sequences.device)], dim=1)


def _completion(ensemble: EnsembleForCausalLM, vocabulary: ByteVocabulary, row: Sequence[int]) -> list[int]:
    """One completion in the host's ids: as it is if they are all the host's, else encoded anew from its bytes."""
    if all(i < vocabulary.size for i in row):
        return list(row)
    ids: list[int] = []
    raw = b""
    for i in row:
        piece = ensemble.union.pieces[i]  # type: ignore[union-attr]
        if piece is None and i < vocabulary.size:
            ids += [*vocabulary.canonical_ids(raw), i]
            raw = b""
        else:
            raw += piece or b""
    return [*ids, *vocabulary.canonical_ids(raw)]
