"""Contrastive decoding: what a strong member finds more likely than a weak one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hf_rlae.checks import POSITIVE, SHARE, Bounds, check_number
from hf_rlae.ensemble.mixing.registry import mixings, safe_log, shift

MOST_RATIO = 1e4
"""What `p_s(y) / p_w(y)` counts as where the weak member gives a token no probability. Source: ours."""
IMPLAUSIBLE = 1000.0
"""How far the scores of implausible tokens are below the strong member's: their probability is 0 in fp32."""
_BETA = Bounds(0, is_optional=True)


class ContrastMixing:
    """`log P(y) = log p_s(y) - log p_w(y) + const` for plausible tokens: contrastive decoding.

    Token y is plausible if `p_s(y) >= alpha * max_z p_s(z)`. Other tokens have probability 0. (Their scores are not
    -inf but the strong member's, 1000 lower: where processors rule out every plausible token, the strong member chooses
    among the rest.) The first member with weight is the strong one. A weak member k counts `w_k / w_s` times, so with
    two members equal weights are the paper's objective, and a weight of 0 switches the contrast off.

    With a number for `beta`, the objective is `(1 + beta) log p_s(y) - beta log p_w(y)` instead. Its distribution is as
    sharp as the strong member's where both members agree, so it is the better one to sample from; the difference alone
    makes all plausible tokens equally likely there.

    Args:
        alpha (`float`, defaults to 0.1): from 0 (all tokens are plausible) to 1 (only the strong member's most likely
            one). Source: public code.
        beta (`float`, *optional*): at least 0; see above. Source: O'Brien and Lewis (arXiv 2309.09117).
        temperature (`float`, defaults to 1.0): of the weak members. Source: the paper, which uses 0.5 and 1.0 (3.4,
            "Choice of amateur").

    Raises:
        ConfigError: a value out of its bounds.

    Source: Li et al. (arXiv 2210.15097), section 3: the contrastive objective and the plausibility constraint.

    Example:

    >>> strong, weak = torch.tensor([[[0.5, 0.4, 0.1]]]), torch.tensor([[[0.7, 0.2, 0.1]]])
    >>> weights, log_z = torch.tensor([[[0.5, 0.5]]]), [torch.zeros(1, 1)] * 2
    >>> ContrastMixing(alpha=0.5).of_probs([strong, weak], log_z, weights).exp()
    tensor([[[0.2632, 0.7368, 0.0000]]])
    """

    needs_common_strings = compares_members = True

    def __init__(self, alpha: float = 0.1, beta: float | None = None, temperature: float = 1.0) -> None:
        check_number("alpha", alpha, SHARE)
        check_number("beta", beta, _BETA)
        check_number("temperature", temperature, POSITIVE)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        logps = [score - z[..., None] for score, z in zip(scores, log_z, strict=True)]
        weak = logps if self.temperature == 1 else [(logp / self.temperature).log_softmax(-1) for logp in logps]
        beta = 1.0 if self.beta is None else self.beta
        mixed = contrasted(logps, weak, weights, beta, self.beta is not None, self.alpha)
        return mixed + shift(log_z, weights)[..., None]

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`."""
        mixed = self.of_logits([safe_log(prob) for prob in probs], [torch.zeros_like(z) for z in log_z], weights)
        return mixed + shift(log_z, weights)[..., None]


def contrasted(
    logps: Sequence[torch.Tensor],
    weak: Sequence[torch.Tensor],
    weights: torch.Tensor,
    beta: float,
    extrapolates: bool = True,
    alpha: float = 0.0,
) -> torch.Tensor:
    """The normalised `log p_s + sum_k beta w_k / w_s (e log p_s - log p_k)`, of shape `(B, n, V)`.

    Args:
        logps, weak (`Sequence[torch.FloatTensor]`): M tensors `(B, n, V)` of log-probabilities; those that a member has
            as the first one with weight, and those that it has as one of the others.
        weights (`torch.FloatTensor` of shape `(B, n, M)`): the first member with weight is s.
        beta (`float`): how much the others count.
        extrapolates (`bool`, defaults to `True`): whether e is 1, so that the factors of all members sum to 1, or 0.
        alpha (`float`, defaults to 0.0): the least share of s's highest probability that a token needs.
    """
    has_weight = weights > 0
    is_first = has_weight & (has_weight.cumsum(-1) == 1)
    strong = torch.full_like(logps[0], -torch.inf)
    for index, logp in enumerate(logps):
        strong = torch.where(is_first[..., index, None], logp, strong)
    is_possible = strong > -torch.inf
    highest = strong.amax(-1, keepdim=True)
    strong = strong.masked_fill(~is_possible, 0.0)
    own = (weights * is_first).sum(-1, keepdim=True)
    factors = beta * weights * (has_weight & ~is_first) / own.masked_fill(own == 0, 1.0)
    mixed = strong
    for index, logp in enumerate(weak):
        factor = factors[..., index, None]
        other = torch.where((factor != 0) & (logp > -torch.inf), logp, strong - math.log(MOST_RATIO))
        mixed = mixed + factor * (strong - other if extrapolates else -other)
    is_left = is_possible
    if alpha > 0:
        is_compared = has_weight.sum(-1, keepdim=True) > 1
        is_left = is_possible & ~(is_compared & (strong < highest + math.log(alpha)))
    mixed = mixed.masked_fill(~is_left, -torch.inf)
    total = mixed.logsumexp(-1, keepdim=True)
    mixed = mixed - total.masked_fill(total == -torch.inf, 0.0)  # without mass in a row, -inf - -inf would be NaN
    return mixed if alpha == 0 else torch.where(is_possible & ~is_left, strong - IMPLAUSIBLE, mixed)


mixings.register("contrast")(ContrastMixing())
