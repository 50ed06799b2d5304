"""The best fixed weights: one weight vector for all tokens of all prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hf_rlae.baselines.by_policy import EnsembleBaseline
from hf_rlae.baselines.fixed_weights import FixedWeights, best_fixed_weights
from hf_rlae.baselines.protocol import Baseline
from hf_rlae.baselines.registry import baselines
from hf_rlae.checks import COUNT, check_number
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.policies import StaticPolicy


@baselines.register("best_fixed")
class BestFixed(EnsembleBaseline):
    """One weight vector for all tokens of all prompts: a given one, or the best of a grid on a validation split.

    The tokens are those of the ensemble's `generate`, with its mixing.

    Args:
        weights (`Sequence[float]`, *optional*): one per member, divided by their sum; `None` leaves them to `fit`.
        resolution (`int`, defaults to 10): `fit` tries all weight vectors in steps of `1 / resolution`, each member
            alone among them. Of equally good ones it takes the nearest to equal weights (ours).

    Attributes:
        search (`FixedWeights`): all weight vectors with their mean scores, after `fit`.
    """

    def __init__(self, weights: Sequence[float] | None = None, resolution: int = 10) -> None:
        check_number("resolution", resolution, COUNT)
        super().__init__(None if weights is None else StaticPolicy(weights))
        self.resolution = resolution
        self.search: FixedWeights | None = None

    @property
    def weights(self) -> list[float] | None:
        """The weights, of which the sum is 1; `None` before `fit`."""
        return self.policy.weights if isinstance(self.policy, StaticPolicy) else None

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        if self.policy is None:
            raise ConfigError(
                "best_fixed has no weights: give them, as in get_baseline('best_fixed', weights=[0.7, 0.3]), or call "
                "fit(members, prompts, score_fn) on a validation split"
            )
        super().prepare(ensemble)

    def choose(self, ensemble: EnsembleForCausalLM, score: Callable[[Baseline], float]) -> None:
        """See [`Baseline`]; the prompts are answered once per weight vector."""
        count = len(ensemble.members)
        self.search = best_fixed_weights(lambda weights: score(BestFixed(weights)), count, self.resolution)
        self.policy = StaticPolicy(self.search.weights)
