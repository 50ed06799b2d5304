"""Power mixing: between the mixture of probabilities and the product of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.ensemble.mixing.linear import LinearMixing
from hf_rlae.ensemble.mixing.registry import mixings, shift
from hf_rlae.errors import ConfigError


class PowerMixing:
    """`p(y) = (sum_k w_k p_k(y)^exponent)^(1 / exponent) / Z`, the weighted power mean of the probabilities.

    With exponent 1 it is linear mixing, and it approaches log mixing as the exponent approaches 0. Unlike log mixing,
    it gives every token that some member with weight proposes a probability.

    Args:
        exponent (`float`, defaults to 0.25): greater than 0.

    Raises:
        ConfigError: an exponent that is not greater than 0.

    Source: the power mean as a pool of opinions is classical; its use in the weighted ensemble is ours.

    Example:

    >>> probs, weights = [torch.tensor([[[0.81, 0.19]]]), torch.tensor([[[0.01, 0.99]]])], torch.tensor([[[0.5, 0.5]]])
    >>> PowerMixing(0.5).of_probs(probs, [torch.zeros(1, 1)] * 2, weights).exp()
    tensor([[[0.3281, 0.6719]]])
    """

    def __init__(self, exponent: float = 0.25) -> None:
        if not 0 < exponent < float("inf"):
            raise ConfigError(
                f"exponent={exponent!r} must be a number greater than 0; use mixing='log' for the product of experts"
            )
        self.exponent = exponent
        self._linear = LinearMixing()

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        powers = [score * self.exponent for score in scores]
        return self._mean(self._linear.of_logits(powers, [z * self.exponent for z in log_z], weights), log_z, weights)

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`."""
        powers = [prob.pow(self.exponent) for prob in probs]
        return self._mean(self._linear.of_probs(powers, log_z, weights), log_z, weights)

    def _mean(self, mixed: torch.Tensor, log_z: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """The normalised root of the mixed powers, given their logarithms up to a constant per row."""
        mean = mixed / self.exponent
        total = mean.logsumexp(-1)
        total = total.masked_fill(total == -torch.inf, 0.0)  # without mass in a row, -inf - -inf would be NaN
        return mean + (shift(log_z, weights) - total)[..., None]


mixings.register("power")(PowerMixing())
