"""The distributions of a learned policy's actions: from scores to weights, deterministic or drawn for training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import Dirichlet, Normal

from hf_rlae.policies.configuration_policy import PolicyConfig

LEAST_WEIGHT = 1e-6
"""Lower bound of drawn Dirichlet weights: at 0 the density is infinite.

About `LEAST_WEIGHT ** a` of the draws of a member with concentration `a` are below it and get the density at the bound.
This biases the gradient of weights near 0 (with `a` = 0.1, a quarter of the draws).
"""


class Actions(nn.Module):
    """The distribution of a policy's actions, given the scores of the members.

    Without drawing, the weights are `softmax(scores)`. The distributions are:

    * `dirichlet`: the actions are the weights, `w ~ Dirichlet(c * softmax(scores))` with a learned concentration c. The
      mean is the deterministic weights.
    * `logistic_normal`: the actions are scores, `x ~ N(scores, sigma)` with one learned sigma per member, and
      `w = softmax(x)`.
    * `gaussian`: the same, but every member's score is the action of a separate agent, with its own log-density.

    Source: RLAE (arXiv 2506.00439) for one agent and for one agent per member; the parametrisation is ours.

    Args:
        config (`PolicyConfig`): `distribution`, `concentration`, `noise` and `num_members`.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.kind = config.distribution
        self.start = math.log(config.concentration if self.kind == "dirichlet" else config.noise)
        size = 1 if self.kind == "dirichlet" else config.num_members
        self.log_scale = nn.Parameter(torch.full((size,), self.start))

    def _distribution(self, scores: torch.Tensor) -> Dirichlet | Normal:
        scale = self.log_scale.exp()
        if self.kind == "dirichlet":
            return Dirichlet(scale * scores.softmax(-1), validate_args=False)
        return Normal(scores, scale, validate_args=False)

    @torch.no_grad()  # with the graph of the scores, the gradient of a draw would cancel that of its log-density
    def draw(self, scores: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Draws actions of shape `(B, M)`; with one seed per row, the draw of a row does not depend on other rows."""
        if seeds is None:
            drawn = self._distribution(scores).sample()
        else:
            drawn = self._draw_rows(scores, seeds)
        if self.kind == "dirichlet":
            drawn = drawn.clamp(min=LEAST_WEIGHT)
            drawn = drawn / drawn.sum(-1, keepdim=True)
        return drawn

    def _draw_rows(self, scores: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        on_cpu, scale = scores.cpu(), self.log_scale.detach().exp().cpu()
        rows = []
        with torch.random.fork_rng(devices=[]):
            for row, seed in zip(on_cpu, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                if self.kind == "dirichlet":
                    rows.append(Dirichlet(scale * row.softmax(-1), validate_args=False).sample())
                else:
                    rows.append(row + scale * torch.randn(row.shape))
        return torch.stack(rows).to(scores.device)

    def weights(self, actions: torch.Tensor) -> torch.Tensor:
        """The weights `(B, M)` of actions `(B, M)`."""
        return actions if self.kind == "dirichlet" else actions.softmax(-1)

    def log_probs(self, scores: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Log-densities in nats: `(B,)` for one agent, `(B, M)` for one agent per member."""
        found = self._distribution(scores).log_prob(actions)
        return found.sum(-1) if self.kind == "logistic_normal" else found

    def entropies(self, scores: torch.Tensor) -> torch.Tensor:
        """Entropies in nats, with the shape of the log-densities."""
        found = self._distribution(scores).entropy().expand(scores.shape if self.kind != "dirichlet" else (-1,))
        return found.sum(-1) if self.kind == "logistic_normal" else found
