"""Linear mixing: the mixture of the members' probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.ensemble.mixing.registry import mixings, shift


class LinearMixing:
    """`p(y) = sum_k w_k p_k(y)`.

    Source: RLAE (arXiv 2506.00439), the weighted ensemble of member distributions.
    """

    def __call__(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        total_shift = shift(log_z, weights)
        log_weights = weights.log()
        mixed: torch.Tensor | None = None
        for index, (score, z) in enumerate(zip(scores, log_z, strict=True)):
            term = score.add_((log_weights[..., index] - z + total_shift)[..., None])
            mixed = term if mixed is None else torch.logaddexp(mixed, term, out=mixed)
        assert mixed is not None
        return mixed


mixings.register("linear")(LinearMixing())
