"""Counts how many tokens each member was run for."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot, pad


@torch.no_grad()
def count_member_tokens(
    span_weights: torch.Tensor,
    span_index: torch.Tensor,
    drawn_members: torch.Tensor | None = None,
    observes_members: bool = False,
    lookahead_tokens: int = 0,
) -> torch.Tensor:
    """The number of member-tokens of each span: of completion tokens for which each member ran.

    A member runs for a token if it has weight there (or is drawn), or if the policy observes it, which is at the first
    token of every span. One member-token is one step of decoding with one member. Text that a member has missed is read
    in one forward pass when the member is needed again, however long it is, and is not counted.

    Source: ours.

    Args:
        span_weights (`torch.FloatTensor` of shape `(B, S, M)`): the weights of every span, after small ones are cut.
        span_index (`torch.LongTensor` of shape `(B, T)`): the span of each completion token; -1 past the end.
        drawn_members (`torch.LongTensor` of shape `(B, T)`, *optional*): the only member that runs for each token, if
            members are drawn.
        observes_members (`bool`, defaults to `False`): whether the policy observes the members (see
            [`MemberObserver`]).
        lookahead_tokens (`int`, defaults to 0): number of tokens that each member writes by itself for the policy at
            the first token of every span; these are counted, too.

    Returns:
        `torch.LongTensor` of shape `(B, S, M)`.

    Example:

    >>> weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    >>> count_member_tokens(weights, torch.tensor([[0, 0, 0, 1, 1, -1]])).tolist()
    [[[3, 0], [2, 2]]]
    >>> count_member_tokens(weights, torch.tensor([[0, 0, 0, 1, 1, -1]]), observes_members=True).tolist()
    [[[3, 1], [2, 2]]]
    """
    spans = span_index.clamp(min=0)[..., None].expand(-1, -1, span_weights.shape[-1])
    if drawn_members is None:
        runs = (span_weights > 0).to(span_index.device).gather(1, spans)
    else:
        runs = one_hot(drawn_members.to(span_index.device), span_weights.shape[-1]).bool()
    begins = (span_index != pad(span_index[:, :-1], (1, 0), value=-1))[..., None]
    if observes_members:
        runs = runs | begins
    tokens = (runs + lookahead_tokens * begins) * (span_index >= 0)[..., None]
    counts = torch.zeros(span_weights.shape, dtype=torch.long, device=span_index.device)
    return counts.scatter_add_(1, spans, tokens.long())
