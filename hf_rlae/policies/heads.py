"""The heads of a learned policy: from observations to one score per member and a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from hf_rlae.policies.actions import actions_of
from hf_rlae.policies.configuration_policy import PolicyConfig

MAX_SCORE_AT_START = 0.009
"""Upper bound of the scores of random heads, and of their values.

It keeps the weights within 2% of 1/M (`exp(2 * 0.009) < 1.02`), and values within 1% of a deviation of the mean reward.
"""
PLACE_SCALES = (8, 64, 512)
"""The critic reads the position t of a span as `t / (t + scale)`, between 0 and 1 for any length. Source: ours."""


class Score(nn.Linear):
    """The last layer of an actor and of the critic; its inputs are between -1 and 1."""


class Heads(nn.Module):
    """Actor and critic on top of the observation, in fp32 for members of any dtype.

    Each member's last hidden state, the mean over several of them (if the policy pools), the mean over its look-ahead
    (if there is one), and the encoder's pooled state go through a layer norm and a linear layer with `tanh` each. The
    features are their outputs, the members' entropies and margins (as `log(1 + x)`), and the pairwise agreement. An
    actor is a linear layer with `tanh` (the trunk) and a linear layer that returns scores. The critic is the same, with
    a value; it also reads the position of the span in the completion. Its loss does not change the layers before: it
    reads detached features.

    Source: RLAE (arXiv 2506.00439) for actor and critic; observing members, and the layers, are ours.

    Args:
        config (`PolicyConfig`): the sizes; `member_hidden_sizes` is required if members are observed.
        text_size (`int`, *optional*): width of the encoder's states, if text is observed.
    """

    def __init__(self, config: PolicyConfig, text_size: int | None) -> None:
        super().__init__()
        members, hidden = config.num_members, config.hidden_size
        sizes = list(config.member_hidden_sizes or []) if config.observes_members else []
        self.member_layers = nn.ModuleList(_projection(size, hidden) for size in sizes)
        pools = config.pooled_tokens > 1
        self.mean_layers = nn.ModuleList(_projection(size, hidden) for size in (sizes if pools else ()))
        self.ahead_layers = nn.ModuleList(
            _projection(size, hidden) for size in (sizes if config.lookahead_tokens else ())
        )
        self.text_layer = None if text_size is None else _projection(text_size, hidden)
        of_members = len(self.member_layers) + len(self.mean_layers) + len(self.ahead_layers)
        width = hidden * (of_members + (text_size is not None))
        if config.observes_members:
            width += 2 * members + members * (members - 1) // 2
        agents = members if config.actor == "per_member" else 1
        trunks = 1 if config.share_trunk else agents
        self.trunks = nn.ModuleList(nn.Linear(width, hidden) for _ in range(trunks))
        self.scores = nn.ModuleList(Score(hidden, members // agents) for _ in range(agents))
        self.critic = Critic(width, hidden)
        self.actions = actions_of(config)

    def forward(
        self, observation: Mapping[str, torch.Tensor], pooled: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `(B, M)` and values `(B,)`, in fp32.

        Args:
            observation (`dict[str, torch.Tensor]`): see [`PolicyModel.observe`].
            pooled (`torch.Tensor` of shape `(B, H)`, *optional*): the encoder's pooled state of the text.
        """
        features = self._features(observation, pooled)
        trunks = [torch.tanh(trunk(features)) for trunk in self.trunks]
        if len(trunks) < len(self.scores):
            trunks = trunks * len(self.scores)
        parts = [score(trunk) for score, trunk in zip(self.scores, trunks, strict=True)]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return scores, self.critic(features.detach(), observation.get("positions"))

    def _features(self, observation: Mapping[str, torch.Tensor], pooled: torch.Tensor | None) -> torch.Tensor:
        parts = [] if pooled is None or self.text_layer is None else [self.text_layer(pooled)]
        for index, layer in enumerate(self.member_layers):
            states = observation[f"hidden_states_{index}"].float()
            if len(self.mean_layers):
                states, means = states.chunk(2, dim=-1)
                parts.append(self.mean_layers[index](means))
            parts.append(layer(states))
        parts.extend(layer(observation[f"lookahead_{index}"].float()) for index, layer in enumerate(self.ahead_layers))
        if len(self.member_layers):
            parts.append(torch.cat([observation["entropies"], observation["margins"]], dim=-1).log1p())
            agreement = observation["agreement"]
            parts.extend(agreement[:, index, index + 1 :] for index in range(agreement.shape[1] - 1))
        return torch.cat(parts, dim=-1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Heads:
        """Changes the device, but never to a dtype with less precision."""

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            coarser = moved.is_floating_point() and moved.element_size() < tensor.element_size()
            return tensor.to(moved.device) if coarser else moved

        super()._apply(keep, recurse)
        return self


class Critic(nn.Module):
    """The value of a state, in units of the running deviation of rewards from their running mean.

    Args:
        width (`int`): number of features.
        hidden (`int`): width of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width + len(PLACE_SCALES), hidden)
        self.value = Score(hidden, 1)

    def forward(self, features: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Values `(B,)`.

        Args:
            features (`torch.Tensor` of shape `(B, F)`).
            positions (`torch.Tensor` of shape `(B,)`, *optional*): tokens before the span; 0 by default.
        """
        at = features.new_zeros(len(features)) if positions is None else positions.to(features.dtype)
        places = torch.stack([at / (at + scale) for scale in PLACE_SCALES], dim=-1)
        values: torch.Tensor = self.value(torch.tanh(self.hidden(torch.cat([features, places], dim=-1))))
        return values[..., 0]


def _projection(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, hidden), nn.Tanh())
