"""What fixed weights, a policy and an oracle make of texts that members have read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from hf_rlae.evaluation.stretches import ReadText

_STEPS = 300
"""Of expectation maximization."""
_SMALL = 0.005
"""Tuned weights below it are 0."""
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Squared entries of the linear policy cost this many nats per span."""


def bits_of(text: ReadText, weights: torch.Tensor) -> float:
    """Bits of a text under a mixture: in each stretch, the mean of the members' probabilities.

    Args:
        text (`ReadText`): S stretches, M members.
        weights (`torch.Tensor` of shape `(M,)` or `(S, M)`): of all stretches, or of each.
    """
    return float(-(text.logps + weights.double().log()).logsumexp(-1).sum() / math.log(2))


def tuned_weights(texts: Sequence[ReadText]) -> torch.Tensor:
    """The fixed weights under which texts are most likely, by expectation maximization.

    Source: Dempster, Laird and Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977 (weights of a
    mixture of given components).

    Returns:
        `torch.DoubleTensor` of shape `(M,)`: the sum is 1; weights below 0.005 are 0.
    """
    logps = torch.cat([text.logps for text in texts])
    weights = torch.full((logps.shape[1],), 1 / logps.shape[1], dtype=torch.float64)
    for _ in range(_STEPS):
        weights = (logps + weights.log()).softmax(-1).mean(0)
    weights = torch.where(weights < _SMALL, 0.0, weights)
    return weights / weights.sum()


def span_starts(text: ReadText, span_length: int) -> torch.Tensor:
    """For each stretch, the stretch with which its span of `span_length` stretches begins; `(S,)`."""
    return torch.arange(len(text.logps)) // span_length * span_length


def oracle_bits(text: ReadText, span_length: int | None) -> float:
    """Bits of a text if the best member is known for every span; for the whole text if `span_length` is `None`."""
    starts = span_starts(text, span_length or len(text.logps))
    sums = torch.zeros_like(text.logps).index_add_(0, starts, text.logps)
    return float(-sums[starts.unique()].max(-1).values.sum() / math.log(2))


class LinearPolicy:
    """Weights per span: a softmax of a linear function of what the members show before the span.

    It stands for what an easy policy learns: it is trained by likelihood, and is convex but for the mixture. Its
    bias begins at fixed weights. A third of the texts choose how much its entries are penalised, or that all are 0.

    Source: ours.

    Args:
        texts (`Sequence[ReadText]`): to learn from, at least 3.
        weights (`torch.Tensor` of shape `(M,)`): the fixed weights to begin with.
        span_length (`int`): of a span, in stretches.
    """

    def __init__(self, texts: Sequence[ReadText], weights: torch.Tensor, span_length: int) -> None:
        self.span_length = span_length
        self.bias = weights.clamp(min=1e-3).log()
        seen = torch.cat([text.seen for text in texts]).double()
        self.mean, self.deviation = seen.mean(0), seen.std(0) + 1e-6
        self.linear: nn.Linear | None = None
        chosen, others = texts[: len(texts) // 3], texts[len(texts) // 3 :]
        best = (sum(bits_of(text, weights) for text in chosen), 0.0)
        for penalty in _PENALTIES:
            self.linear = self._trained(others, penalty)
            best = min(best, (sum(bits_of(text, self.weights(text)) for text in chosen), penalty))
        self.linear = self._trained(texts, best[1]) if best[1] else None
        self.fixed = weights

    @torch.no_grad()
    def weights(self, text: ReadText) -> torch.Tensor:
        """The weights of every stretch, `(S, M)`."""
        if self.linear is None:
            return self.fixed.expand_as(text.logps)
        starts = span_starts(text, self.span_length)
        weights: torch.Tensor = self.linear(self._scaled(text)[starts]).softmax(-1)
        return weights

    def _scaled(self, text: ReadText) -> torch.Tensor:
        return (text.seen.double() - self.mean) / self.deviation / math.sqrt(len(self.mean))

    def _trained(self, texts: Sequence[ReadText], penalty: float) -> nn.Linear:
        logps = torch.cat([text.logps for text in texts])
        seen = torch.cat([self._scaled(text)[span_starts(text, self.span_length)] for text in texts])
        linear = nn.Linear(seen.shape[1], logps.shape[1], dtype=torch.float64)
        nn.init.zeros_(linear.weight)
        with torch.no_grad():
            linear.bias.copy_(self.bias)
        optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")
        count = len(logps) / self.span_length

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            likelihood = (logps + linear(seen).log_softmax(-1)).logsumexp(-1).sum()
            value: torch.Tensor = -likelihood / count + penalty * linear.weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return linear
