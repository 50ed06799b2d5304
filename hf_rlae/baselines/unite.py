"""UniTE: the mean of the members' probabilities over the union of their most likely tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        scores: list[list[tuple[int, torch.Tensor]]] = [[] for _ in rows]
        unions: list[dict[int, None]] = [{} for _ in rows]  # in the order of the members
        for index, weight in enumerate(weights):
            places, logits = relay.logits(index, rows) if weight else ([], None)
            if logits is None:
                continue
            tokens = relay.space.tokens(index).to(logits.device)
            logits = logits.masked_fill(tokens == NO_TOKEN, -torch.inf)
            best = logits.topk(min(self.top_k, logits.shape[1]), dim=-1)
            for place, values, ids in zip(places, best.values.tolist(), tokens[best.indices].tolist(), strict=True):
                unions[place].update(dict.fromkeys(t for t, v in zip(ids, values, strict=True) if v > -math.inf))
            for place, own in zip(places, logits, strict=True):
                scores[place].append((index, own))
        found = [self._mean(relay.space, list(union), own, weights) for union, own in zip(unions, scores, strict=True)]
        width = max(map(len, unions))
        logps = torch.full((len(rows), width), -torch.inf, device=relay.ensemble.device)
        chosen = torch.full((len(rows), width), NO_TOKEN)
        for place, (union, own_logps) in enumerate(zip(unions, found, strict=True)):
            logps[place, : len(union)] = own_logps
            chosen[place, : len(union)] = torch.tensor(list(union))
        return logps, chosen

    def _mean(
        self, space: TokenSpace, union: list[int], scores: list[tuple[int, torch.Tensor]], weights: Sequence[float]
    ) -> torch.Tensor:
        """The log-probabilities of the tokens of one row's union."""
        present = sum(weights[index] for index, _ in scores)
        parts = []
        for index, logits in scores:
            own = torch.stack([_score(space, index, token, logits) for token in union])
            parts.append(own.log_softmax(-1) + math.log(weights[index] / present))
        return torch.stack(parts).logsumexp(0)


def _score(space: TokenSpace, index: int, token: int, logits: torch.Tensor) -> torch.Tensor:
    """A member's logit of a token, from its logits `(V_m,)`; -inf if it cannot write the token."""
    ids = list(space.own_ids(index, token)) or list(space.ids(index, token)[:1])
    return logits[ids].logsumexp(0) if ids else logits.new_full((), -torch.inf)
