"""Checks of the arguments of `forward` and `generate`, before a member runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from hf_rlae.errors import InputError
from hf_rlae.policies import Policy, observed_tokens

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.engines.protocol import Engine
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
            f"{name} is empty (shape {tuple(ids.shape)}), so there is no text to continue; give every row at least one "
            "token, such as the tokenizer's bos token"
        )
    low, high = int(ids.min()), int(ids.max())
    size = model.engine.num_input_ids
    if low < 0 or high >= size:
        raise InputError(
            f"{name} has the id {low if low < 0 else high}, outside the union vocabulary of {size} ids; encode prompts "
            "with `ensemble.tokenizer`"
        )


def _check_mask(ids: torch.Tensor, mask: Any, columns: int) -> None:
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != ids.shape[0]:
        raise InputError(
            f"attention_mask must be 2-D with one row per row of input_ids ({ids.shape[0]}), got "
            f"{tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}; use the mask that the "
            "tokenizer returns with input_ids"
        )
    if mask.shape[1] not in (ids.shape[1], columns):
        raise InputError(
            f"attention_mask has {mask.shape[1]} columns, the text has {columns}; it must cover the whole text"
        )
    empty = (mask != 0).sum(1) == 0
    if bool(empty.any()):
        raise InputError(
            f"attention_mask masks all of row {int(empty.nonzero()[0])}, and an empty prompt cannot be continued; give "
            "the row at least one token"
        )


def check_forward_inputs(model: EnsembleForCausalLM, ids: Any, mask: Any, cache: EnsembleCache, labels: Any) -> None:
    """Raises `InputError` for invalid arguments of `forward`."""
    _check_ids(model, ids, "input_ids")
    _check_mask(ids, mask, cache.seen + ids.shape[1])
    if labels is not None and tuple(labels.shape) != tuple(ids.shape):
        raise InputError(
            f"labels must have the shape of input_ids, {tuple(ids.shape)}, got {tuple(labels.shape)}; set labels to "
            "-100 where there is no loss"
        )


def check_declared_prompt(
    model: EnsembleForCausalLM, starts: torch.Tensor, labels: torch.Tensor | None, has_own_prompts: bool, is_known: bool
) -> None:
    """Raises `InputError` for members' prompts of unknown length, and for labels inside a prompt without logits.

    Args:
        model (`EnsembleForCausalLM`): the ensemble.
        starts (`torch.LongTensor` of shape `(B,)`): the column of the first token of each completion.
        labels (`torch.LongTensor` of shape `(B, n)`, *optional*): the labels of the first call with the cache.
        has_own_prompts (`bool`): whether `member_input_ids` are given.
        is_known (`bool`): whether `starts` is given, or follows from labels.
    """
    if has_own_prompts and not is_known:
        raise InputError(
            "member_input_ids without prompt_length: the members' own prompts replace the first columns of input_ids, "
            "and the number of these columns is unknown; pass prompt_length (input_ids.shape[1] if input_ids is the "
            "prompt alone), or labels that are -100 on the prompt"
        )
    if labels is None or model.engine.has_prompt_logits:
        return
    inside = torch.arange(labels.shape[1]) < starts[:, None]
    wrong = (labels.cpu() != -100) & inside
    wrong[:, 0] = False  # no label of the first column is ever used
    if bool(wrong.any()):
        row = int(wrong.any(1).nonzero()[0])
        raise InputError(
            f"labels: row {row} has labels inside its prompt of {int(starts[row])} columns, where an ensemble with "
            "different tokenizers has no distribution (members read the prompt in their own tokens); set these labels "
            "to -100, or give a smaller prompt_length"
        )


def check_generate_inputs(
    model: EnsembleForCausalLM, ids: Any, settings: GenerationConfig, kwargs: dict[str, Any]
) -> torch.Tensor:
    """The prompt's ids; `InputError` for invalid arguments of `generate`. `settings` are those of the call."""
    if kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds is not supported, because members have different embeddings; pass input_ids")
    model.engine.check_generation(settings)
    if ids is None:
        raise InputError(
            "input_ids is missing: pass a prompt, `ensemble.generate(**ensemble.tokenizer(texts, "
            "return_tensors='pt', padding=True))`"
        )
    check_prompts(model, ids, kwargs.get("attention_mask"))
    return ids


def check_prompts(model: EnsembleForCausalLM, ids: Any, mask: Any) -> None:
    """Raises `InputError` for ids and a mask that are not prompts padded on the left."""
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


def check_continued(cache: EnsembleCache, ids: torch.Tensor) -> None:
    """Raises `InputError` for ids that do not have the shape of the texts in the cache."""
    expected = (cache.batch_size, cache.seen + 1)
    if tuple(ids.shape) != expected:
        raise InputError(
            f"input_ids has shape {tuple(ids.shape)}, but the texts of the cache have shape {expected} (rows that were "
            "kept, columns with the last token); pass their `sequences`, or a new cache"
        )


def check_cached_states(engine: Engine, cache: EnsembleCache, policy: Policy) -> None:
    """Raises `InputError` for a cache that was made for a policy with other hidden states (see `observed_tokens`)."""
    cached, wanted = cache.call.hidden_tokens, observed_tokens(policy)
    if wanted and wanted != cached and (max(wanted, cached) > 1 or not engine.always_shows_states):
        raise InputError(
            f"past_key_values was made for a policy that reads the members' newest {cached} tokens (pooled_tokens), "
            f"and the policy reads {wanted} now; start without past_key_values, or call `new_cache()` after "
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
        given = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InputError(
            f"member_attention_mask must have the shape of member_input_ids, {tuple(ids.shape)}, got {given}; make "
            "both with `ensemble.tokenizer.apply_chat_template(conversations)`"
        )
    kept = torch.ones_like(ids) if mask is None else mask
    if bool((kept.sum(-1) == 0).any()):
        row, member = (kept.sum(-1) == 0).nonzero()[0].tolist()
        raise InputError(f"member_attention_mask masks all of row {row} of member {member}; give it at least one token")
    for index, member in enumerate(model.members):
        inside = ids[:, index][kept[:, index] != 0]
        if int(inside.min()) < 0 or int(inside.max()) >= member.vocab_size:
            raise InputError(
                f"member_input_ids has ids outside the {member.vocab_size} ids of member {index} ({member.name}); "
                "encode with that member's own tokenizer"
            )
