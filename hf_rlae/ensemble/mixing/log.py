"""Log mixing: the product of experts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from hf_rlae.ensemble.mixing.linear import LinearMixing
from hf_rlae.ensemble.mixing.registry import mixings, safe_log, shift

logger = logging.getLogger(__name__)

FLOOR = 1e-4
"""Share of a member's distribution that is the members' mixture, across tokenizers: readings that a member has dropped
rule out no string that another member proposes."""


class LogMixing:
    """`p(y) = prod_k p_k(y)^w_k / Z`: a token that one member with weight rules out is ruled out.

    If the members together rule out every token (Z = 0), linear mixing is used, with a warning. Across tokenizers a
    token that one member lacks would be ruled out, so a product needs a grain whose strings every member can write,
    such as bytes (`EnsembleConfig.grain`).

    Source: products of experts; their use in the weighted ensemble is ours.
    """

    needs_common_strings = True

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        mixed = _weighted(scores[0], weights[..., 0, None])
        for index, score in enumerate(scores[1:], 1):
            mixed = mixed + _weighted(score, weights[..., index, None])
        total = mixed.logsumexp(-1)
        lost = total == -torch.inf
        if bool(lost.any()):
            logger.warning("log mixing: the members together rule out every token; linear mixing is used instead")
            unshifted = [torch.zeros_like(z) for z in log_z]
            linear = LinearMixing().of_probs([score.softmax(-1) for score in scores], unshifted, weights)
            mixed = torch.where(lost[..., None], linear, mixed)
            total = mixed.logsumexp(-1)
        return mixed + (shift(log_z, weights) - total)[..., None]

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`; where several members have weight, `FLOOR` of each is their mixture."""
        is_mixed = (weights > 0).sum(-1, keepdim=True) > 1
        floor = torch.where(is_mixed, FLOOR, 0.0)
        mixture = sum(weights[..., index, None] * prob for index, prob in enumerate(probs))
        probs = [prob + floor * mixture for prob in probs]
        mixed = self.of_logits([safe_log(prob) for prob in probs], [torch.zeros_like(z) for z in log_z], weights)
        return mixed + shift(log_z, weights)[..., None]


def _weighted(score: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`score * weight`, but 0 if the weight is 0: a member without weight does not rule tokens out.

    Without the masks, `0 * -inf` would be NaN, in values and in gradients. The gradients of ruled-out tokens are 0.
    """
    has_weight = weight > 0
    if not torch.is_grad_enabled():
        return torch.where(has_weight, score * weight, 0.0)
    is_ruled_out = has_weight & (score == -torch.inf)
    return (score.masked_fill(is_ruled_out | ~has_weight, 0.0) * weight).masked_fill(is_ruled_out, -torch.inf)


mixings.register("log")(LogMixing())
