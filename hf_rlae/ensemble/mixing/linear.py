"""Linear mixing: the mixture of the members' probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.ensemble.mixing.registry import mixings, safe_log, shift


class LinearMixing:
    """`p(y) = sum_k w_k p_k(y)`.

    Source: RLAE (arXiv 2506.00439), the weighted ensemble of member distributions.
    """

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        total_shift = shift(log_z, weights)
        log_weights = safe_log(weights)
        in_place = not torch.is_grad_enabled()
        terms = []
        for index, (score, z) in enumerate(zip(scores, log_z, strict=True)):
            offset = (log_weights[..., index] - z + total_shift)[..., None]
            terms.append(score.add_(offset) if in_place else score + offset)
        mixed = terms[0]
        for term in terms[1:]:
            mixed = torch.logaddexp(mixed, term, out=mixed) if in_place else _logaddexp(mixed, term)
        return mixed

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`."""
        # multiply and add separately, not fused, so that the result for two members does not depend on their order
        if torch.is_grad_enabled():
            mixed = probs[0] * weights[..., 0, None]
            for index, prob in enumerate(probs[1:], 1):
                mixed = mixed + prob * weights[..., index, None]
            return safe_log(mixed) + shift(log_z, weights)[..., None]
        mixed = probs[0].mul_(weights[..., 0, None])
        for index, prob in enumerate(probs[1:], 1):
            mixed.add_(prob.mul_(weights[..., index, None]))
        return mixed.log_().add_(shift(log_z, weights)[..., None])


def _logaddexp(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`logaddexp`, with gradient 0 instead of NaN if both arguments are -inf."""
    is_neither = (first == -torch.inf) & (second == -torch.inf)
    first, second = first.masked_fill(is_neither, 0.0), second.masked_fill(is_neither, 0.0)
    return torch.logaddexp(first, second).masked_fill(is_neither, -torch.inf)


mixings.register("linear")(LinearMixing())
