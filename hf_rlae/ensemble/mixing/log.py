"""Log mixing: the product of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.ensemble.mixing.registry import mixings, shift


class LogMixing:
    """`p(y) = prod_k p_k(y)^w_k / Z`: a token that one member rules out is ruled out.

    Source: products of experts; as an option of the weighted ensemble, ours.
    """

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        mixed: torch.Tensor | None = None
        for index, score in enumerate(scores):
            weight = weights[..., index, None]
            # 0 * -inf is NaN: a member without weight has no say, not even about what it rules out
            term = torch.where(weight > 0, score * weight, 0.0)
            mixed = term if mixed is None else mixed + term
        assert mixed is not None
        return mixed + (shift(log_z, weights) - mixed.logsumexp(-1))[..., None]

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`."""
        mixed = self.of_logits([prob.log() for prob in probs], [torch.zeros_like(z) for z in log_z], weights)
        return mixed.add_(shift(log_z, weights)[..., None])


mixings.register("log")(LogMixing())
