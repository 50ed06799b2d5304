"""Weights from how sure the members are."""

from __future__ import annotations

from typing import Any

import torch

from hf_rlae.policies.state import PolicyState
from hf_rlae.policies.static import policies
from hf_rlae.policies.temperature import checked_temperature


@policies.register("entropy")
class EntropyPolicy:
    """The surer a member is of its next token at the span's start, the more weight it has.

    `w = softmax(-H / temperature)`, where `H_m` is the entropy of member m's next-token distribution in nats. It needs
    no training, and fails where a member is wrong with confidence.

    Source: ours.

    Args:
        temperature (`float`, defaults to 1.0): above 0, in nats; small values give all weight to the surest member.

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
