"""The loop of baselines that choose one token at a time for every row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from hf_rlae.baselines.inputs import Prompts
from hf_rlae.baselines.protocol import Baseline, BaselineOutput, check_member
from hf_rlae.baselines.relay import Relay, runners_of
from hf_rlae.baselines.spaces import space_of
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.policies import StaticPolicy

Candidates = tuple[torch.Tensor, torch.Tensor | None]
"""Log-probabilities `(R, N)`, and the tokens that they are of: see `Relay.choose`."""


class TokenwiseBaseline(Baseline):
    """A baseline that is a distribution over the next token.

    Args:
        weights (`Sequence[float]`, *optional*): one per member, divided by their sum; `None` = equal.
        main (`int`, defaults to 0): the member with a special part, told by each baseline.
    """

    retokenises = False

    def __init__(self, weights: Sequence[float] | None = None, main: int = 0) -> None:
        self.weights = None if weights is None else StaticPolicy(weights).weights
        self.main = main

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        count = len(ensemble.members)
        check_member("main", self.main, ensemble)
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(f"weights has {len(self.weights)} entries for {count} members; give one per member")
        space_of(ensemble)
        runners_of(ensemble)

    def weights_of(self, count: int) -> list[float]:
        """The weights of all members."""
        return [1 / count] * count if self.weights is None else self.weights

    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """See [`Baseline`]."""
        relay = Relay(ensemble, prompts, settings, self.main if self.retokenises else None)
        while relay.open:
            rows = self.running(relay)
            if not rows:
                break
            logps, tokens = self.candidates(relay, rows)
            for row, token in zip(rows, relay.choose(rows, logps, tokens), strict=True):
                relay.append(row, token)
        return relay.output()

    def running(self, relay: Relay) -> list[int]:
        """The open rows; those that have outgrown the context of every member with weight end."""
        weights = self.weights_of(len(relay.readers))
        for row in list(relay.open):
            if not any(
                w and r.fits(row, ids[row]) for w, r, ids in zip(weights, relay.readers, relay.ids, strict=True)
            ):
                relay.end(row)
        return list(relay.open)

    @abstractmethod
    def candidates(self, relay: Relay, rows: list[int]) -> Candidates:
        """The distribution over the next token of R rows."""
