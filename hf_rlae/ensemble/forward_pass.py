"""The parts of `EnsembleForCausalLM.forward`: where completions begin, the mixture, and the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.engines.protocol import Engine
from hf_rlae.ensemble.engines.states import StateReader
from hf_rlae.ensemble.faults import MemberFaults
from hf_rlae.ensemble.images import prompts_with_images, show_images
from hf_rlae.ensemble.inputs import check_declared_prompt, check_member_inputs
from hf_rlae.ensemble.negative_prompts import default_prompts
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.policies import Policy, PolicyState, answered, cut, rescaled

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM


def begin_spans(
    model: EnsembleForCausalLM,
    cache: EnsembleCache,
    labels: torch.Tensor | None,
    starts: torch.Tensor | None,
    member_ids: torch.Tensor | None,
    member_mask: torch.Tensor | None,
) -> None:
    """Finds the columns where completions begin, and passes members their own prompts.

    Args:
        model (`EnsembleForCausalLM`), cache (`EnsembleCache`): the ensemble and the state of the call.
        labels (`torch.LongTensor` of shape `(B, n)`, *optional*): the first one that is not -100 begins a completion.
        starts (`torch.LongTensor` of shape `(B,)`, *optional*): the columns, if `prompt_length` is given.
        member_ids, member_mask (`torch.LongTensor` of shape `(B, M, L)`, *optional*): the members' own prompts.
    """
    firsts = cache.first_columns()
    is_known = starts is not None or labels is not None
    if cache.start is not None:
        starts = torch.full_like(firsts, cache.start)
    elif starts is None and labels is not None:
        wanted = (labels != -100).long().cpu()
        starts = torch.where(wanted.any(1), wanted.argmax(1), firsts)
    elif starts is None:
        starts = firsts
    if not cache.in_generate:
        check_declared_prompt(model, starts, labels, member_ids is not None, is_known)
    check_member_inputs(model, member_ids, member_mask, len(firsts))
    if member_ids is None:
        member_ids, member_mask = default_prompts(model, cache, starts, is_known)
    if cache.images is not None and member_ids is None:
        own = prompts_with_images(model, cache, cache.images, starts, is_known or cache.in_generate)
        member_ids, member_mask = own.get("member_input_ids"), own.get("member_attention_mask")
    if member_ids is not None:
        kept = torch.ones_like(member_ids) if member_mask is None else member_mask.long()
        cache.call.set_prompts(cache, starts, member_ids.long(), kept)
    cache.begin_spans(model.config.tokens_per_weights, starts)
    if cache.images is not None:
        show_images(model, cache, cache.images)
    if not cache.in_generate and not model.engine.has_prompt_logits:
        cache.given = given_columns(cache, model.engine.pieces, starts)


def given_columns(cache: EnsembleCache, pieces: Sequence[bytes | None], starts: torch.Tensor) -> list[int]:
    """The column of the last special token that begins each row, if its completion begins there.

    If tokenizers differ, special tokens have no probability. Those that begin a text (a beginning-of-text token that is
    there twice, as tools that score whole texts make it) are not what a model has to predict: they are given, with
    probability 1, and labels there are ignored.

    Args:
        cache (`EnsembleCache`): the text.
        pieces (`Sequence[bytes | None]`): the bytes of every id.
        starts (`torch.LongTensor` of shape `(B,)`): the columns where completions begin.

    Returns:
        `list[int]`: the first attended column where there is no such token after it.
    """
    ends = []
    for row, start, first in zip(cache.ids.tolist(), starts.tolist(), cache.spans.firsts.tolist(), strict=True):
        end = first
        while start <= first and end + 1 < len(row) and pieces[row[end]] is None and pieces[row[end + 1]] is None:
            end += 1
        ends.append(end)
    return ends


def mixed_logits(
    config: EnsembleConfig, states: StateReader, cache: EnsembleCache, policy: Policy, keep: int
) -> torch.Tensor:
    """Calls the policy for every span that begins, and mixes the members: logits of shape `(B, keep, V)`."""
    try:
        step = cache.call.step(cache, keep)
        for query in step.queries():
            faults = cache.faults
            if faults is not None:
                faults.look()
            state = states.state(cache, step, query)
            try:
                answer = answered(policy, state)
                weights = cut(answer.output.weights, config.min_weight, config.max_active_members)
                weights = rescaled(weights, cache.call.engine.weight_scale)
                unread = None if faults is None else faults.unread(weights.device)
                values = _on_host(weights, answer.is_good, unread)
                if faults is not None:
                    faults.read(math.nan if unread is None else values[-1][0])
                answer.check([row[-1] for row in values[: len(weights)]])
            except Exception:
                if faults is not None:
                    _blame_members(faults, state, query)
                raise
            cache.spans.set(query, weights, [row[:-1] for row in values[: len(weights)]])
        logits = step.logits()
        return logits if cache.faults is None else cache.faults.covered(logits)
    except BaseException:
        cache.call.reset()  # some members have read the new columns: all read the text again
        raise


def _on_host(weights: torch.Tensor, is_good: torch.Tensor, unread: torch.Tensor | None) -> list[list[float]]:
    """All that the host needs to know of new weights, for which the device is waited for once.

    Returns:
        `list[list[float]]`: for each row its weights `(M,)` and whether they are valid; then `unread`, if there is one.
    """
    values = torch.cat([weights.detach(), is_good[:, None].to(weights.dtype)], dim=1)
    if unread is not None:
        values = torch.cat([values, unread.to(values.dtype).expand(1, values.shape[1])])
    return values.tolist()


def _blame_members(faults: MemberFaults, state: PolicyState, query: SpanQuery) -> None:
    """Raises `NonFiniteError` if a policy failed and has observed logits that are not finite."""
    rows = None if query.rows is None else query.rows.tolist()
    for index, entry in enumerate(vars(state).get("observations", ())):  # runs no member if the policy observed none
        highest = entry.logits.amax(-1)
        faults.note(index, query.column, highest.masked_fill(highest == -torch.inf, 0.0), rows)  # -inf: dropped out
    faults.read()


def label_loss(
    engine: Engine,
    logits: torch.Tensor,
    labels: torch.Tensor,
    given: Sequence[int] | None,
    num_items: int | torch.Tensor | None,
) -> torch.Tensor:
    """The mean negative log-probability of the labels, or the sum divided by `num_items`, as in transformers."""
    if given is not None:
        is_given = torch.arange(labels.shape[1]) <= torch.tensor(given)[:, None]
        labels = labels.masked_fill(is_given.to(labels.device), -100)
    loss = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        engine.to_union(labels.long())[:, 1:].flatten().to(logits.device),
        ignore_index=-100,
        reduction="mean" if num_items is None else "sum",
    )
    if num_items is None:
        return loss
    return loss / (num_items.to(loss.device) if isinstance(num_items, torch.Tensor) else num_items)
