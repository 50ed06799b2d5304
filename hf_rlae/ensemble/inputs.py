"""Checks of the arguments of `forward`, before a member runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.errors import InputError, nearest
from hf_rlae.policies import Policy, observed_tokens
from hf_rlae.vocabulary.grain import TOKEN

if TYPE_CHECKING:
    from hf_rlae.ensemble.engines.protocol import Engine
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_NAMES = (
    "input_ids",
    "attention_mask",
    "past_key_values",
    "labels",
    "prompt_length",
    "use_cache",
    "logits_to_keep",
    "member_input_ids",
    "member_attention_mask",
    "return_dict",
    "num_items_in_batch",
)
"""The arguments of `forward`."""

_WITHOUT_EFFECT = {"token_type_ids"}
"""Arguments that tokenizers return, and that causal language models ignore."""

_UNSUPPORTED = {
    "position_ids": "the positions follow from attention_mask, in each member's own tokens",
    "inputs_embeds": "members have different embeddings",
    "output_hidden_states": "members have different widths; a policy observes them as `state.hidden_states`",
    "output_attentions": "members have different layers",
}


class Check(NamedTuple):
    """A condition whose value is on a device, and the message if it is false."""

    is_fine: torch.Tensor
    message: Callable[[], str]


def raise_first(checks: Sequence[Check]) -> None:
    """Raises `InputError` for the first check that fails; waits for the device once."""
    if not checks:
        return
    device = checks[0].is_fine.device
    results = torch.stack([check.is_fine.to(device) for check in checks]).tolist()
    for is_fine, check in zip(results, checks, strict=True):
        if not is_fine:
            raise InputError(check.message())


def _given(value: Any) -> str:
    """A short description of a value for messages."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    place = "" if value.device.type != "meta" else " on the meta device"
    layout = "" if value.layout == torch.strided else f" with layout {value.layout}"
    return f"{value.dtype} of shape {tuple(value.shape)}{layout}{place}"


def _has_values(value: Any, dims: int) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == dims
        and value.layout == torch.strided
        and value.device.type != "meta"
    )


def _are_ids(value: Any, dims: int = 2) -> bool:
    return _has_values(value, dims) and value.dtype in (torch.int64, torch.int32)


def check_ids(model: EnsembleForCausalLM, ids: Any, name: str) -> list[Check]:
    """Raises `InputError` for ids of a wrong kind; returns the checks of their values."""
    if not _are_ids(ids):
        raise InputError(
            f"{name} must be a 2-D tensor of token ids (rows, columns) in int64 or int32, got {_given(ids)}; make it "
            "with `ensemble.tokenizer(texts, return_tensors='pt', padding=True)`"
        )
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise InputError(
            f"{name} is empty (shape {tuple(ids.shape)}), so there is no text to continue; give every row at least one "
            "token, such as the tokenizer's bos token"
        )
    size = model.engine.num_input_ids

    def message() -> str:
        wrong = int(ids[(ids < 0) | (ids >= size)][0])
        return (
            f"{name} has the id {wrong}, outside the union vocabulary of {size} ids; encode prompts with "
            "`ensemble.tokenizer`"
        )

    return [Check(((ids >= 0) & (ids < size)).all(), message)]


def mask_checks(ids: torch.Tensor, mask: Any, columns: int, prefix: str = "") -> list[Check]:
    """Raises `InputError` for a mask of a wrong kind or shape; returns the checks of its values."""
    name, of_ids = f"{prefix}attention_mask", f"{prefix or 'input_'}ids"
    if not _has_values(mask, 2) or mask.shape[0] != ids.shape[0]:
        raise InputError(
            f"{name} must be 2-D with one row per row of {of_ids} ({ids.shape[0]}), got {_given(mask)}; use the mask "
            f"that the tokenizer returns with {of_ids}"
        )
    if mask.shape[1] not in (ids.shape[1], columns):
        raise InputError(f"{name} has {mask.shape[1]} columns, the text has {columns}; it must cover the whole text")
    return [
        Check(((mask == 0) | (mask == 1)).all(), lambda: _wrong_mask(name, mask)),
        Check((mask != 0).any(1).all(), lambda: _empty_row(name, mask)),
    ]


def _wrong_mask(name: str, mask: torch.Tensor) -> str:
    wrong = mask[(mask != 0) & (mask != 1)][0].item()
    return f"{name} has the value {wrong}; give 1 for tokens and 0 for padding"


def _empty_row(name: str, mask: torch.Tensor) -> str:
    return (
        f"{name} masks all of row {int((~(mask != 0).any(1)).nonzero()[0])}, and an empty prompt cannot be "
        "continued; give the row at least one token"
    )


def check_cache(model: EnsembleForCausalLM, cache: Any, rows: int) -> None:
    """Raises `InputError` for `past_key_values` that are not a cache of this ensemble with this number of rows."""
    if not isinstance(cache, EnsembleCache):
        raise InputError(
            f"past_key_values must be an EnsembleCache, got {type(cache).__name__}: every member has its own cache; "
            "leave past_key_values out, or make it with `ensemble.new_cache()`"
        )
    if cache.call.engine is not model.engine:
        raise InputError(
            "past_key_values was made by another ensemble, whose members have read its text; leave past_key_values "
            "out, or make it with the `new_cache()` of this ensemble"
        )
    if cache.seen and cache.batch_size != rows:
        raise InputError(
            f"past_key_values has {cache.batch_size} rows, the call has {rows} (beams and samples count as rows); "
            "repeat or select its rows with `batch_repeat_interleave` or `batch_select_indices`, or leave it out"
        )


def check_forward_inputs(
    model: EnsembleForCausalLM,
    ids: Any,
    mask: Any,
    cache: Any,
    labels: Any,
    logits_to_keep: int,
    others: dict[str, Any],
) -> None:
    """Raises `InputError` for invalid arguments of `forward`; waits for the device once."""
    for name, value in others.items():
        if name in _UNSUPPORTED and (value is None or value is False):
            continue
        if name in _UNSUPPORTED:
            raise InputError(f"{name} is not supported, because {_UNSUPPORTED[name]}; leave {name} out")
        if name not in _WITHOUT_EFFECT and name != "num_items_in_batch":
            raise InputError(f"{name} is not an argument of `forward`: {nearest(name, _NAMES)}")
    _check_count(others.get("num_items_in_batch"))
    checks = check_ids(model, ids, "input_ids")
    check_cache(model, cache, ids.shape[0])
    if mask is not None:
        checks += mask_checks(ids, mask, cache.seen + ids.shape[1])
    if labels is not None:
        checks += _label_checks(model, ids, labels, logits_to_keep)
    raise_first(checks)


def _check_count(given: Any) -> None:
    """Raises `InputError` for a `num_items_in_batch` by which no loss can be divided; a tensor's value is not read."""
    if isinstance(given, torch.Tensor):
        is_fine = given.numel() == 1 and given.dtype != torch.bool and not given.is_complex()
    else:
        is_fine = given is None or (isinstance(given, int | float) and not isinstance(given, bool) and given > 0)
    if not is_fine:
        raise InputError(
            f"num_items_in_batch must be a number above 0 or a tensor with one number, got {given!r:.80}; give the "
            "number of labels of the whole batch, or leave it out for the mean over the labels"
        )


def _label_checks(model: EnsembleForCausalLM, ids: torch.Tensor, labels: Any, logits_to_keep: int) -> list[Check]:
    if not _are_ids(labels) or labels.shape != ids.shape:
        raise InputError(
            f"labels must be int64 or int32 and have the shape of input_ids, {tuple(ids.shape)}, got {_given(labels)}; "
            "set labels to -100 where there is no loss"
        )
    if 0 < logits_to_keep < ids.shape[1]:
        raise InputError(
            f"logits_to_keep={logits_to_keep} with labels for {ids.shape[1]} columns: the loss needs the logits of all "
            "columns; leave logits_to_keep out"
        )
    size = model.engine.num_input_ids
    is_fine = (labels == -100) | ((labels >= 0) & (labels < size))

    def message() -> str:
        return (
            f"labels has the id {int(labels[~is_fine][0])}, outside the union vocabulary of {size} ids; give ids of "
            "`ensemble.tokenizer`, and -100 where there is no loss"
        )

    return [Check(is_fine.all(), message), *_grain_checks(model, labels)]


def _grain_checks(model: EnsembleForCausalLM, labels: torch.Tensor) -> list[Check]:
    """A check that the ensemble can write the labels of text, whatever its grain; nothing predicts the first column."""
    union = model.union
    if union is None or union.grain == TOKEN:
        return []
    labels = labels[:, 1:]
    ids = model.engine.to_union(labels.long().clamp(0, union.size - 1))
    is_written = (labels == -100) | ~union.are_split(ids)  # special tokens have no probability at any grain

    def message() -> str:
        label = int(labels[~is_written][0])
        return (
            f"labels has the id {label} ({union.pieces[label]!r}), which is never written with grain={union.grain!r}; "
            "give completions as `ensemble.tokenizer.completion_ids(text)`, and -100 where there is no loss"
        )

    return [Check(is_written.all(), message)]


def check_flag(name: str, given: Any) -> None:
    """Raises `InputError` for a value that is neither `None` nor a `bool`."""
    if given is not None and not isinstance(given, bool):
        raise InputError(f"{name}={given!r}: give True, False or None")


def kept_columns(given: Any) -> int:
    """`logits_to_keep` as a number of last columns, 0 for all; `InputError` for anything else."""
    try:
        number = 0 if given is None else operator.index(given)
    except TypeError:
        number = -1
    if number < 0 or isinstance(given, bool):
        raise InputError(
            f"logits_to_keep must be a number of last columns of at least 0, got {given!r}; 0 returns the logits of all"
        )
    return number


def prompt_starts(given: Any, cache: EnsembleCache, ids: torch.Tensor) -> torch.Tensor:
    """`prompt_length` of each row, `(B,)` on the CPU.

    Args:
        given: the argument.
        cache (`EnsembleCache`): the text so far.
        ids (`torch.LongTensor` of shape `(B, n)`): the new columns.

    Raises:
        InputError: not whole numbers within the text, or others than in an earlier call with this cache.
    """
    rows, columns = ids.shape[0], cache.seen + ids.shape[1]
    try:
        lengths = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        lengths = torch.tensor(torch.nan)
    is_whole = not (lengths.is_floating_point() or lengths.is_complex()) and lengths.dtype != torch.bool
    if not is_whole or lengths.device.type == "meta" or tuple(lengths.shape) not in ((), (rows,)):
        raise InputError(
            f"prompt_length must be a whole number, or one per row (a tensor of shape ({rows},)), got "
            f"{_given(given) if isinstance(given, torch.Tensor) else repr(given)}"
        )
    starts = lengths.cpu().long().expand(rows).clone()
    wrong = (starts < 0) | (starts > columns)
    if bool(wrong.any()):
        raise InputError(
            f"prompt_length={int(starts[wrong][0])}: the text has {columns} columns; give the column of the first "
            f"completion token, from 0 to {columns} (no completion yet)"
        )
    if cache.has_spans and not torch.equal(starts, cache.spans.starts):
        raise InputError(
            f"prompt_length={starts.tolist()}, but the completions in past_key_values begin at the columns "
            f"{cache.spans.starts.tolist()}; leave prompt_length out, or start without past_key_values"
        )
    return starts


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
    """Raises `InputError` for `member_input_ids` and their mask that do not fit the ensemble."""
    if ids is None and mask is None:
        return
    members = len(model.members)
    if not _are_ids(ids, 3) or tuple(ids.shape[:2]) != (rows, members):
        raise InputError(
            f"member_input_ids must be int64 or int32 of shape (rows, members, columns) = ({rows}, {members}, L), got "
            f"{_given(ids)}; make it with `ensemble.tokenizer.apply_chat_template(conversations)`"
        )
    if mask is not None and (not _has_values(mask, 3) or mask.shape != ids.shape):
        raise InputError(
            f"member_attention_mask must have the shape of member_input_ids, {tuple(ids.shape)}, got {_given(mask)}; "
            "make both with `ensemble.tokenizer.apply_chat_template(conversations)`"
        )
    kept = torch.ones_like(ids) if mask is None else mask
    has_text = (kept != 0).any(-1)
    sizes = torch.tensor([member.vocab_size for member in model.members], device=ids.device)[:, None]
    is_inside = ((ids >= 0) & (ids < sizes)) | (kept == 0)

    def empty() -> str:
        row, member = (~has_text).nonzero()[0].tolist()
        return f"member_attention_mask masks all of row {row} of member {member}; give it at least one token"

    def outside() -> str:
        index = int((~is_inside).nonzero()[0, 1])
        member = model.members[index]
        return (
            f"member_input_ids has ids outside the {member.vocab_size} ids of member {index} ({member.name}); encode "
            "with that member's own tokenizer"
        )

    raise_first(
        [
            Check(((kept == 0) | (kept == 1)).all(), lambda: _wrong_mask("member_attention_mask", kept)),
            Check(has_text.all(), empty),
            Check(is_inside.all(), outside),
        ]
    )
