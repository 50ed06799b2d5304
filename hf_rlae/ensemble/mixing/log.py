"""Log mixing: the product of experts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from hf_rlae.ensemble.mixing.linear import LinearMixing
from hf_rlae.ensemble.mixing.registry import mixings, shift

logger = logging.getLogger(__name__)


class LogMixing:
    """`p(y) = prod_k p_k(y)^w_k / Z`: a token that one member rules out is ruled out.

    Where the members rule out every token between them (Z = 0), their linear mixture is taken.

    Source: products of experts; as an option of the weighted ensemble, ours.
    """

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        mixed: torch.Tensor | None = None
        for index, score in enumerate(scores):
            term = _weighted(score, weights[..., index, None])
            mixed = term if mixed is None else mixed + term
        assert mixed is not None
        total = mixed.logsumexp(-1)
        lost = total == -torch.inf
        if bool(lost.any()):
            logger.warning("the members rule out every token between them; their linear mixture is taken there")
            unshifted = [torch.zeros_like(z) for z in log_z]
            linear = LinearMixing().of_probs([score.softmax(-1) for score in scores], unshifted, weights)
            mixed = torch.where(lost[..., None], linear, mixed)
            total = mixed.logsumexp(-1)
        return mixed + (shift(log_z, weights) - total)[..., None]

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`."""
        mixed = self.of_logits([prob.log() for prob in probs], [torch.zeros_like(z) for z in log_z], weights)
        return mixed + shift(log_z, weights)[..., None]


def _weighted(score: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`score * weight`, but 0 where there is no weight: without it a member has no say, not even in what it rules out.

    `0 * -inf` is NaN, in values and in gradients, which are 0 here for what is ruled out: it trains nobody.
    """
    has_say = weight > 0
    if not torch.is_grad_enabled():
        return torch.where(has_say, score * weight, 0.0)
    is_ruled_out = has_say & (score == -torch.inf)
    return (score.masked_fill(is_ruled_out | ~has_say, 0.0) * weight).masked_fill(is_ruled_out, -torch.inf)


mixings.register("log")(LogMixing())
