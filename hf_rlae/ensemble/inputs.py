"""Checks of what users pass to `forward` and `generate`, before anything is run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from hf_rlae.errors import InputError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


def _check_ids(model: EnsembleForCausalLM, ids: Any, name: str) -> None:
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.is_floating_point():
        given = tuple(ids.shape) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise InputError(
            f"{name} must be a 2-D tensor of token ids (rows, columns), got {given}; make it with "
            "`ensemble.tokenizer(texts, return_tensors='pt', padding=True)`"
        )
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise InputError(
            f"{name} is empty (shape {tuple(ids.shape)}): there is no text to continue; give every row at least "
            "one token, such as the tokenizer's bos token"
        )
    low, high = int(ids.min()), int(ids.max())
    size = model.engine.num_input_ids
    if low < 0 or high >= size:
        raise InputError(
            f"{name} holds the id {low if low < 0 else high}, outside the union vocabulary of {size} ids; encode "
            "with `ensemble.tokenizer`"
        )


def _check_mask(ids: torch.Tensor, mask: Any, columns: int) -> None:
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != ids.shape[0]:
        raise InputError(
            f"attention_mask must have one row per row of input_ids ({ids.shape[0]}) and 2 dimensions, got "
            f"{tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}"
        )
    if mask.shape[1] not in (ids.shape[1], columns):
        raise InputError(
            f"attention_mask has {mask.shape[1]} columns, the text has {columns}; it must cover the whole text"
        )
    empty = (mask != 0).sum(1) == 0
    if bool(empty.any()):
        raise InputError(
            f"attention_mask masks all of row {int(empty.nonzero()[0])}: an empty prompt cannot be continued; "
            "give the row at least one token"
        )


def check_forward_inputs(model: EnsembleForCausalLM, ids: Any, mask: Any, cache: EnsembleCache, labels: Any) -> None:
    """Raises `InputError` for arguments of `forward` that cannot be used."""
    _check_ids(model, ids, "input_ids")
    _check_mask(ids, mask, cache.seen + ids.shape[1])
    if labels is not None and tuple(labels.shape) != tuple(ids.shape):
        raise InputError(
            f"labels must have the shape of input_ids, {tuple(ids.shape)}, got {tuple(labels.shape)}; put -100 where "
            "no loss is wanted"
        )


def check_declared_prompt(
    model: EnsembleForCausalLM, starts: torch.Tensor, labels: torch.Tensor | None, has_own_prompts: bool, is_known: bool
) -> None:
    """Raises `InputError` for prompts of members that end nowhere, and for labels inside a prompt without logits.

    Args:
        model (`EnsembleForCausalLM`): whose `forward` is called.
        starts (`torch.LongTensor` of shape `(B,)`): the columns of the first tokens of the completions.
        labels (`torch.LongTensor` of shape `(B, n)`, *optional*): of this call, the first one with its cache.
        has_own_prompts (`bool`): whether `member_input_ids` are given.
        is_known (`bool`): whether `starts` was given, or follows from labels.
    """
    if has_own_prompts and not is_known:
        raise InputError(
            "member_input_ids without prompt_length: the members' own prompts stand for the first columns of "
            "input_ids, and nothing says how many; pass prompt_length (input_ids.shape[1] where input_ids is the "
            "prompt alone), or labels that are -100 on the prompt"
        )
    if labels is None or model.engine.has_prompt_logits:
        return
    inside = torch.arange(labels.shape[1]) < starts[:, None]
    wrong = (labels.cpu() != -100) & inside
    wrong[:, 0] = False  # of the first token there is no prediction anywhere
    if bool(wrong.any()):
        row = int(wrong.any(1).nonzero()[0])
        raise InputError(
            f"labels: row {row} has labels inside its prompt of {int(starts[row])} columns, where an ensemble of "
            "different tokenizers has no distribution (members read the prompt in their own tokens); put -100 there, "
            "or give a smaller prompt_length"
        )


def check_generate_inputs(
    model: EnsembleForCausalLM, ids: Any, settings: GenerationConfig, kwargs: dict[str, Any]
) -> None:
    """Raises `InputError` for arguments of `generate` that cannot be used; `settings` are those of the call."""
    if kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds: members have different embeddings; pass input_ids")
    model.engine.check_generation(settings)
    if ids is None:
        raise InputError(
            "input_ids is missing: pass a prompt, `ensemble.generate(**ensemble.tokenizer(texts, "
            "return_tensors='pt', padding=True))`"
        )
    check_prompts(model, ids, kwargs.get("attention_mask"))


def check_prompts(model: EnsembleForCausalLM, ids: Any, mask: Any) -> None:
    """Raises `InputError` for ids and a mask that are no prompts padded on the left."""
    _check_ids(model, ids, "input_ids")
    if mask is not None:
        _check_mask(ids, mask, ids.shape[1])
        if bool((mask[:, -1] == 0).any()):
            row = int((mask[:, -1] == 0).nonzero()[0])
            raise InputError(
                f"attention_mask ends with 0 in row {row}: prompts must be padded on the left; set "
                "`tokenizer.padding_side = 'left'`"
            )


def check_draws(settings: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raises `InputError` for ways of decoding in which a member cannot be drawn, and logs what sampling means then.

    A logits processor with a true attribute `draws_tokens` leaves one token, which it has drawn itself.
    """
    is_drawn = any(getattr(entry, "draws_tokens", False) for entry in kwargs.get("logits_processor") or ())
    if not settings.do_sample and not is_drawn:
        raise InputError(
            "do_sample=False with draw: a drawn member's most likely token is not the mixture's; pass do_sample=True, "
            "or build the ensemble with draw=None"
        )
    if (settings.num_beams or 1) > 1:
        raise InputError(
            f"num_beams={settings.num_beams} with draw: beams need the mixture's own probabilities; pass num_beams=1, "
            "or build the ensemble with draw=None"
        )
    if kwargs.get("assistant_model") is not None or settings.prompt_lookup_num_tokens:
        raise InputError(
            "assisted decoding with draw: proposed tokens are accepted by the mixture's own probabilities; leave "
            "assistant_model and prompt_lookup_num_tokens out, or build the ensemble with draw=None"
        )
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    warped = [name for name in plain if getattr(settings, name) not in (None, plain[name])]
    if warped:
        logger.info(
            "%s act on the drawn member: texts come from the mixture of the members' warped distributions, not from "
            "the warped mixture",
            ", ".join(f"{name}={getattr(settings, name)}" for name in warped),
        )


def check_prompt_lengths(
    model: EnsembleForCausalLM, cache: EnsembleCache, ids: torch.Tensor, kwargs: dict[str, Any]
) -> None:
    """Raises `InputError` for a prompt that is longer than some member's context, in that member's own tokens."""
    if len(model.members) == 1:
        return
    own = kwargs.get("member_input_ids")
    if own is not None:
        own_mask = kwargs.get("member_attention_mask")
        check_member_inputs(model, own, own_mask, ids.shape[0])
        lengths = [own.shape[2]] * own.shape[1] if own_mask is None else own_mask.sum(2).amax(0).tolist()
    else:
        lengths = cache.call.prompt_lengths(ids, kwargs.get("attention_mask"))
    for member, length in zip(model.members, lengths, strict=True):
        if member.context_length is not None and length > member.context_length:
            raise InputError(
                f"input_ids: the prompt has {length} tokens for member {member.name}, which was built for at most "
                f"{member.context_length}; shorten the prompt or leave the member out"
            )


def check_chat(cache: EnsembleCache, kwargs: dict[str, Any]) -> None:
    """Raises `InputError` for the cache of a chat with different tokenizers, which cannot be continued.

    Members that share a tokenizer have read their own prompts and all that was written since; with different
    tokenizers the first prompt would be read again.
    """
    if cache.seen and (cache.call.rereads_own_prompts or kwargs.get("member_input_ids") is not None):
        raise InputError(
            "past_key_values belongs to a chat, in which every member has read a prompt of its own; render the whole "
            "conversation with `ensemble.tokenizer.apply_chat_template`, and leave past_key_values out"
        )


def check_continued(cache: EnsembleCache, ids: torch.Tensor) -> None:
    """Raises `InputError` for ids that are not the texts which a cache continues."""
    expected = (cache.batch_size, cache.seen + 1)
    if tuple(ids.shape) != expected:
        raise InputError(
            f"input_ids has the shape {tuple(ids.shape)}, but the cache continues texts of the shape {expected} "
            "(rows that were kept, columns that were written); give their `sequences`, or a new cache"
        )


def check_cached_states(cached: int, wanted: int, shows_newest: bool) -> None:
    """Raises `InputError` for a cache made for a policy that reads other hidden states (see `observed_tokens`).

    Args:
        cached (`int`), wanted (`int`): of how many tokens, then and now.
        shows_newest (`bool`): whether members show their newest hidden states even if none were wanted.
    """
    if wanted and wanted != cached and (max(wanted, cached) > 1 or not shows_newest):
        raise InputError(
            f"past_key_values was made for a policy that reads the members' newest {cached} tokens (pooled_tokens), "
            f"and the policy reads {wanted} now: begin without past_key_values, or call `new_cache()` after "
            "`set_policy()`"
        )


def check_member_inputs(model: EnsembleForCausalLM, ids: Any, mask: Any, rows: int) -> None:
    """Raises `InputError` for `member_input_ids` that do not fit the ensemble."""
    members = len(model.members)
    if not isinstance(ids, torch.Tensor) or ids.dim() != 3 or tuple(ids.shape[:2]) != (rows, members):
        given = tuple(ids.shape) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise InputError(
            f"member_input_ids must have the shape (rows, members, columns) = ({rows}, {members}, L), got {given}; "
            "make it with `ensemble.tokenizer.apply_chat_template(conversations)`"
        )
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape != ids.shape):
        raise InputError("member_attention_mask must have the shape of member_input_ids")
    kept = torch.ones_like(ids) if mask is None else mask
    if bool((kept.sum(-1) == 0).any()):
        row, member = (kept.sum(-1) == 0).nonzero()[0].tolist()
        raise InputError(f"member_attention_mask masks all of row {row} of member {member}: give it at least one token")
    for index, member in enumerate(model.members):
        inside = ids[:, index][kept[:, index] != 0]
        if int(inside.min()) < 0 or int(inside.max()) >= member.vocab_size:
            raise InputError(
                f"member_input_ids holds ids outside the {member.vocab_size} of member {index} ({member.name}); encode "
                "with that member's own tokenizer"
            )
