"""UniTE: the mean of the members' probabilities over the union of their most likely tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from hf_rlae.baselines.registry import baselines
from hf_rlae.baselines.relay import Relay
from hf_rlae.baselines.spaces import NO_TOKEN, TokenSpace
from hf_rlae.baselines.tokenwise import Candidates, TokenwiseBaseline
from hf_rlae.checks import COUNT, check_number


@baselines.register("unite")
class UniTE(TokenwiseBaseline):
    """Averages over the union of each member's `top_k` tokens, at every token.

    `U = union of top_k(p_k)`. A member scores a token of U that it has by its logit, and one that it lacks by the logit
    of the first id with which its tokenizer writes the token. `q_k = softmax over U` of these scores, and
    `p(u) = sum_k w_k q_k(u)`. The member `main` appends the chosen token; members with another tokenizer encode the
    whole completion again.

    Source: UniTE (arXiv 2410.03777), Algorithm 1 for the union, the update of the tokens and the choice; public code
    for the mean of softmaxes over the union, and for the member that appends. It departs from the paper in these
    points: tokens are equal if their bytes are; all end tokens are one token; sampling is possible, where the paper is
    greedy; the ids of the prompt are kept when a completion is encoded again. Which members fit together, the other
    half of the paper, is up to the caller.

    Args:
        top_k (`int`, defaults to 10): number of tokens of each member. Source: public code.
        weights (`Sequence[float]`, *optional*): one per member; `None` = equal.
        main (`int`, defaults to 0): the member whose ids are kept.
    """

    retokenises = True

    def __init__(self, top_k: int = 10, weights: Sequence[float] | None = None, main: int = 0) -> None:
        check_number("top_k", top_k, COUNT)
        super().__init__(weights, main)
        self.top_k = top_k

    def candidates(self, relay: Relay, rows: list[int]) -> Candidates:
        """See [`TokenwiseBaseline`]."""
        weights = self.weights_of(len(relay.readers))
        scores: list[dict[int, torch.Tensor]] = [{} for _ in rows]  # by member, its logits
        unions: list[dict[int, None]] = [{} for _ in rows]  # in the order of the members
        for index, weight in enumerate(weights):
            places, logits = relay.logits(index, rows) if weight else ([], None)
            if logits is None:
                continue
            tokens = relay.space.tokens(index).to(logits.device)
            logits = logits.masked_fill(tokens == NO_TOKEN, -torch.inf)
            best = logits.topk(min(self.top_k, logits.shape[1]), dim=-1)
            for place, values, top in zip(places, best.values.tolist(), tokens[best.indices].tolist(), strict=True):
                unions[place].update(dict.fromkeys(t for t, v in zip(top, values, strict=True) if v > -math.inf))
            for place, own in zip(places, logits, strict=True):
                scores[place][index] = own
        width = max(map(len, unions))
        logps = torch.full((len(rows), width), -torch.inf)
        chosen = torch.full((len(rows), width), NO_TOKEN)
        for place, union in enumerate(map(list, unions)):
            logps[place, : len(union)] = mean_of_union(relay.space, union, scores[place], weights)
            chosen[place, : len(union)] = torch.tensor(union)
        return logps.to(relay.ensemble.device), chosen


def mean_of_union(
    space: TokenSpace, union: Sequence[int], scores: Mapping[int, torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """The log-probabilities `(U,)` of the tokens of a union.

    Args:
        space (`TokenSpace`), union (`Sequence[int]`): U tokens.
        scores (`Mapping[int, torch.Tensor]`): by member, its logits `(V_m,)`.
        weights (`Sequence[float]`): one per member; those of members without logits do not count.
    """
    present = sum(weights[index] for index in scores)
    parts = []
    for index, logits in scores.items():
        ids = [list(space.own_ids(index, token)) or list(space.ids(index, token)[:1]) for token in union]
        flat = torch.tensor([i for own in ids for i in own], device=logits.device, dtype=torch.long)
        segments = torch.tensor([at for at, own in enumerate(ids) for _ in own], dtype=torch.long)
        found = logits[flat].cpu().double()
        found = found - found.max()  # of at least one token, this member's own most likely one
        sums = torch.zeros(len(union), dtype=torch.double).index_add_(0, segments, found.exp())
        parts.append(weights[index] / present * sums / sums.sum())
    return torch.stack(parts).sum(0).log().float()
