"""The actions of a learned policy: from scores to weights, deterministic or drawn for training."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import Dirichlet, Normal
from torch.nn.functional import logsigmoid

from hf_rlae.policies.configuration_policy import PolicyConfig
from hf_rlae.policies.row_numbers import new_seeds, uniforms

LEAST_ALPHA = 1e-30
"""Lower bound of the alphas of a Dirichlet; a draw's log-weights are then finite in fp32."""
LEAST_LOG_SUM = -1e4
"""What takes the place of `log(0)`, the log-sum of the other members' scores where there is no other member."""


class Actions(nn.Module):
    """The distribution of a policy's actions, given the scores of the members. One subclass a kind.

    Without drawing, the weights are `softmax(scores)`. With one agent, an action has one log-probability; with one
    agent per member (`actor="per_member"`), every agent's action has its own.

    Source: RLAE (arXiv 2506.00439) for one agent and for one agent per member.

    Args:
        config (`PolicyConfig`): `action`, `actor`, `num_members` and the settings of the kind.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.is_joint = config.actor == "joint"

    @torch.no_grad()  # with the graph of the scores, the gradient of a draw would cancel that of its log-density
    def draw(self, scores: torch.Tensor, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Draws actions of shape `(B, M)`.

        Args:
            scores (`torch.Tensor` of shape `(B, M)`).
            seeds (`Sequence[int]`, *optional*): one per row, from which alone the row's action is drawn; by default
                torch's global generator gives them.
        """
        return self._draw(scores, new_seeds(len(scores)) if seeds is None else seeds)

    @abstractmethod
    def _draw(self, scores: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor: ...

    @abstractmethod
    def weights(self, actions: torch.Tensor) -> torch.Tensor:
        """The weights `(B, M)` of actions `(B, M)`."""

    @abstractmethod
    def log_probs(self, scores: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Log-probabilities or log-densities in nats: `(B,)` for one agent, `(B, M)` for one agent per member."""

    @abstractmethod
    def entropies(self, scores: torch.Tensor) -> torch.Tensor:
        """Entropies in nats, with the shape of the log-probabilities."""


class CategoricalActions(Actions):
    """Draws one member for the span, with the deterministic weights as probabilities. An action is a one-hot row.

    With one agent per member, agent m decides whether its member is the drawn one: a Bernoulli variable with the logit
    `s_m - logsumexp(scores of the others)`, where the others' scores are constants. Its probability is the member's
    weight, and summed over the agents the gradient of the log-probabilities is that of the joint distribution.

    Source: ours. Rollouts draw from a mixture of spans; see docs/rlae_trainer.md for evaluation.
    """

    def _draw(self, scores: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        cumulated = scores.double().softmax(-1).cumsum(-1)
        numbers = uniforms(seeds, 1).to(scores.device) * cumulated[:, -1:]
        drawn = torch.searchsorted(cumulated, numbers, right=True).clamp(max=scores.shape[1] - 1)
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)

    def weights(self, actions: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        return actions

    def log_probs(self, scores: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        if self.is_joint:
            return torch.where(actions > 0, scores.log_softmax(-1), 0).sum(-1)
        logits = _bids(scores)
        return logsigmoid(torch.where(actions > 0, logits, -logits))

    def entropies(self, scores: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        if self.is_joint:
            return -(scores.softmax(-1) * scores.log_softmax(-1)).sum(-1)
        logits = _bids(scores)
        return -(logits.sigmoid() * logsigmoid(logits) + (-logits).sigmoid() * logsigmoid(-logits))


def _bids(scores: torch.Tensor) -> torch.Tensor:
    """The Bernoulli logits of agents, `(B, M)`."""
    members = scores.shape[-1]
    own = torch.eye(members, dtype=torch.bool, device=scores.device)
    others = scores.detach()[:, None].expand(-1, members, -1).masked_fill(own, -torch.inf)
    return scores - others.logsumexp(-1).clamp(min=LEAST_LOG_SUM)


class DirichletActions(Actions):
    """Draws weights, `w ~ Dirichlet(c * softmax(scores))`, with a learned concentration c. An action is `log(w)`.

    The mean is the deterministic weights. Log-weights are drawn and kept, so the densities of weights too small for a
    number are exact. The gradient of a density is dominated by how small the small weights are, which hardly changes
    the text; see docs/rlae_trainer.md.

    Source: public code of RLAE for the distribution; the parametrisation is ours. Gamma variables are drawn by
    rejection (Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000).
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.start = math.log(config.concentration)
        self.log_scale = nn.Parameter(torch.full((1,), self.start))

    def _alphas(self, scores: torch.Tensor) -> torch.Tensor:
        return (self.log_scale.exp() * scores.softmax(-1)).clamp(min=LEAST_ALPHA)

    def _draw(self, scores: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        alphas = self._alphas(scores).double()
        boost = uniforms(seeds, scores.shape[1]).to(scores.device).log() / alphas
        found = _log_gammas(alphas + 1, seeds) + boost  # G(a) has the distribution of G(a + 1) U^(1/a)
        return (found - found.logsumexp(-1, keepdim=True)).to(scores.dtype)

    def weights(self, actions: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        return actions.softmax(-1)

    def log_probs(self, scores: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        alphas = self._alphas(scores)
        scale = alphas.sum(-1).lgamma() - alphas.lgamma().sum(-1)
        return ((alphas - 1) * actions).sum(-1) + scale

    def entropies(self, scores: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        found: torch.Tensor = Dirichlet(self._alphas(scores), validate_args=False).entropy()
        return found


def _log_gammas(shapes: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Logarithms of gamma variables with shapes `(B, M)` of at least 1, from the numbers of each row's seed."""
    members = shapes.shape[1]
    centre = shapes - 1 / 3
    found = torch.zeros_like(shapes)
    is_open = torch.ones_like(shapes, dtype=torch.bool)
    first = members
    while bool(is_open.any()):
        normal, level = uniforms(seeds, 2 * members, first).to(shapes.device).chunk(2, dim=1)
        normal = torch.special.ndtri(normal)
        cube = (1 + normal / (9 * centre).sqrt()).clamp(min=0) ** 3
        bound = 0.5 * normal**2 + centre * (1 - cube + cube.log())  # minus infinity for a cube of 0
        is_taken = is_open & (level.log() < bound)
        found = torch.where(is_taken, centre.log() + cube.log(), found)
        is_open &= ~is_taken
        first += 2 * members
    return found


class LogisticNormalActions(Actions):
    """Draws scores, `x ~ N(scores, sigma)`, with one learned sigma per member; the weights are `softmax(x)`.

    An action is x; with one agent per member, each agent draws the score of its member.

    Source: ours.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.start = math.log(config.noise)
        self.log_scale = nn.Parameter(torch.full((config.num_members,), self.start))

    def _draw(self, scores: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        normal = torch.special.ndtri(uniforms(seeds, scores.shape[1])).to(scores)
        return scores + self.log_scale.exp() * normal

    def weights(self, actions: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        return actions.softmax(-1)

    def log_probs(self, scores: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        return self._summed(Normal(scores, self.log_scale.exp(), validate_args=False).log_prob(actions))

    def entropies(self, scores: torch.Tensor) -> torch.Tensor:
        """See `Actions`."""
        found = Normal(scores, self.log_scale.exp(), validate_args=False).entropy()
        return self._summed(found.expand(scores.shape))

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        return values.sum(-1) if self.is_joint else values


KINDS: dict[str, type[Actions]] = {
    "categorical": CategoricalActions,
    "dirichlet": DirichletActions,
    "logistic_normal": LogisticNormalActions,
}


def actions_of(config: PolicyConfig) -> Actions:
    """The actions of a policy with this config."""
    return KINDS[config.action](config)
