"""Weights from the members' entropies."""

from __future__ import annotations

from typing import Any

import torch

from hf_rlae.policies.state import PolicyState
from hf_rlae.policies.static import policies
from hf_rlae.policies.temperature import checked_temperature


@policies.register("entropy")
class EntropyPolicy:
    """Gives more weight to members that are more confident about the first token of the span.

    `w = softmax(-H / temperature)`, where `H_m` is the entropy of member m's next-token distribution in nats. It needs
    no training. It fails if a member is confident and wrong.

    Source: ours.

    Args:
        temperature (`float`, defaults to 1.0): above 0, in nats; small values give all weight to the most confident
            member.

    Raises:
        ConfigError: a temperature that is not finite or not above 0.

    Example:

    >>> EntropyPolicy(temperature=0.5).settings()
    {'temperature': 0.5}
    """

    registered_name = "entropy"
    observes_members = True

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = checked_temperature(temperature)

    def __call__(self, state: PolicyState) -> torch.Tensor:
        return (-state.entropies / self.temperature).softmax(1)

    def settings(self) -> dict[str, Any]:
        """What `EntropyPolicy(**settings)` needs, for saving."""
        return {"temperature": self.temperature}
