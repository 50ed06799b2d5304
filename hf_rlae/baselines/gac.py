"""GaC: the mean of the members' probabilities over the union of their vocabularies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hf_rlae.baselines.registry import baselines
from hf_rlae.baselines.relay import Relay
from hf_rlae.baselines.tokenwise import Candidates, TokenwiseBaseline
from hf_rlae.checks import Bounds, check_number


@baselines.register("gac")
class GaC(TokenwiseBaseline):
    """`p(u) = sum_k w_k sum_{v: map_k(v) = u} p_k(v)` over the union of the vocabularies; the token `u` is appended.

    Every member's tokenizer encodes the text of the chosen token, and the member appends these ids.

    Source: GaC (arXiv 2406.12585). It departs from the paper in three points: tokens are equal if their *bytes* are,
    not their surface strings; all end tokens are one token of the union; sampling is possible.

    Args:
        weights (`Sequence[float]`, *optional*): one per member; `None` = equal.
        threshold (`float`, *optional*): from 0 to 1. The thresholded variant: where the most likely token of the member
            `main` has at least this probability, that member decides alone, and the others read the token later. `None`
            = every token. Source: public code of GaC for the name and its direction.
        main (`int`, defaults to 0): the gate of the thresholded variant.

    Example:

    >>> from hf_rlae import get_baseline, load_demo_members
    >>> baseline = get_baseline("gac", weights=[0.8, 0.1, 0.1])
    >>> baseline.generate(load_demo_members(), ["7+5="], max_new_tokens=12, do_sample=False).texts
    [' 7+5=12. 12']
    """

    def __init__(self, weights: Sequence[float] | None = None, threshold: float | None = None, main: int = 0) -> None:
        check_number("threshold", threshold, Bounds(0, 1, is_optional=True))
        super().__init__(weights, main)
        self.threshold = threshold

    def candidates(self, relay: Relay, rows: list[int]) -> Candidates:
        """See [`TokenwiseBaseline`]."""
        if self.threshold is None:
            return mixed(relay, rows, self.weights_of(len(relay.readers))), None
        gate = mixed(relay, rows, [float(index == self.main) for index in range(len(relay.readers))])
        unsure = (gate.amax(-1).exp() < self.threshold) | (gate == -torch.inf).all(-1)
        places = unsure.nonzero()[:, 0].tolist()
        if places:
            gate[places] = mixed(relay, [rows[at] for at in places], self.weights_of(len(relay.readers)))
        return gate, None


def mixed(relay: Relay, rows: Sequence[int], weights: Sequence[float]) -> torch.Tensor:
    """Log-probabilities `(R, V)` of the weighted mean of the members; those beyond their context are left out."""
    device = relay.ensemble.device
    total = torch.full((len(rows), relay.space.size), -torch.inf, device=device)
    share = torch.zeros(len(rows), 1, device=device)
    for index, weight in enumerate(weights):
        places, logits = relay.logits(index, rows) if weight else ([], None)
        if logits is not None:
            own = relay.space.spread(index, logits) + math.log(weight)
            total[places] = torch.logaddexp(total[places], own)
            share[places] += weight
    return total - share.clamp(min=1e-30).log()  # rows that no member reads keep -inf
