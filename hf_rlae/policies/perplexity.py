"""Weights from the members' perplexities of the prompt."""

from __future__ import annotations

from typing import Any

import torch

from hf_rlae.policies.state import PolicyState
from hf_rlae.policies.static import policies
from hf_rlae.policies.temperature import checked_temperature


@policies.register("perplexity")
class PerplexityPolicy:
    """Gives more weight, in the whole completion, to members with a lower perplexity of the prompt.

    `w = softmax(-L / temperature)`, where `L_m` is the logarithm of member m's perplexity of the prompt. With one
    tokenizer this is PackLLM-sim: `L_m` is the mean negative log-probability of the prompt's tokens. Different
    tokenizers split the prompt into tokens of different lengths. Then `L_m` is the mean per byte, times the mean number
    of bytes per token over the members, so the order of the members makes no difference.

    A prompt of one token has no perplexity; the weights are then equal. Every member reads the prompt once more.

    Source: PackLLM (arXiv 2404.11531), "PackLLM-sim". Its public code has `softmax(-loss / tau)` with `tau = 1`.

    Args:
        temperature (`float`, defaults to 1.0): above 0, in nats per token; small values give all weight to the member
            with the lowest perplexity. Source: public code of PackLLM.

    Raises:
        ConfigError: a temperature that is not finite or not above 0.

    Example:

    >>> PerplexityPolicy(temperature=0.5).settings()
    {'temperature': 0.5}
    """

    registered_name = "perplexity"
    observes_members = False

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = checked_temperature(temperature)

    def __call__(self, state: PolicyState) -> torch.Tensor:
        scores = state.prompt_scores
        per_byte = -scores.logps / scores.num_bytes.clamp(min=1)
        bytes_per_token = (scores.num_bytes / scores.num_tokens.clamp(min=1)).mean(1, keepdim=True)
        scaled = -per_byte * bytes_per_token / self.temperature
        return scaled.clamp(min=-1e6).softmax(1)  # without it, NaN if the prompt is impossible for every member

    def settings(self) -> dict[str, Any]:
        """What `PerplexityPolicy(**settings)` needs, for saving."""
        return {"temperature": self.temperature}
