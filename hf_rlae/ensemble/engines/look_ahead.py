"""Greedy look-ahead of members that read the columns of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_rlae.members import Member, mean_state_ahead
from hf_rlae.policies import MemberObservation

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache


def columns_ahead(
    cache: EnsembleCache,
    run: Any,
    member: Member,
    seen: MemberObservation,
    column: int,
    rows: torch.Tensor | None,
    num_tokens: int,
) -> torch.Tensor:
    """Lets a copy of a member's run continue the texts up to `column` by itself (see `mean_state_ahead`).

    Args:
        cache (`EnsembleCache`): the texts.
        run: the member's run, which has read them; it is not changed.
        member (`Member`): the member.
        seen (`MemberObservation`): its outputs at `column`, for all B rows.
        column (`int`): the last column of the texts to continue.
        rows (`torch.LongTensor` of shape `(R,)`, on the CPU, *optional*): the rows to continue; all by default.
        num_tokens (`int`): number of tokens to write, at most.

    Returns:
        `torch.Tensor` of shape `(R, H_m)`.
    """
    length, logits, ids, mask = column + 1, seen.logits, cache.ids, cache.mask
    limit = torch.inf if member.context_length is None else float(member.context_length)
    room = limit - run.lengths(torch.tensor([length]), cache.spans.firsts)[:, 0].float()
    ids, mask = ids[:, :length], None if mask is None else mask[:, :length]
    if rows is not None:
        room, ids, logits = room[rows], ids[rows.to(ids.device)], logits[rows.to(logits.device)]
        mask = None if mask is None else mask[rows.to(mask.device)]
    if not bool((room > 0).any()):
        return torch.zeros(len(ids), member.hidden_size, dtype=member.dtype, device=member.device)
    twin = run.ahead(length)
    if rows is not None:
        twin.reorder(rows)

    def read(new: torch.Tensor, goes_on: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal ids, mask
        ids = torch.cat([ids, new[:, None].to(ids.device)], dim=1)
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        scores, states = twin.read(ids, mask, 1, True)
        return scores[:, -1], states[:, -1]

    return mean_state_ahead(member, logits, read, room, num_tokens)
