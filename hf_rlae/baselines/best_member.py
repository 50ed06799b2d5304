"""The best member: one of them answers every prompt."""

from __future__ import annotations

from collections.abc import Callable

from transformers import GenerationConfig

from hf_rlae.baselines.inputs import Prompts
from hf_rlae.baselines.own_answers import alone, answer_alone
from hf_rlae.baselines.protocol import Baseline, BaselineOutput, check_member
from hf_rlae.baselines.registry import baselines
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError


@baselines.register("best_member")
class BestMember(Baseline):
    """One member answers every prompt: a given one, or the best on a validation split.

    Args:
        index (`int`, *optional*): the member; `None` leaves the choice to `fit`, which takes the first of the members
            with the highest mean score.

    Attributes:
        scores (`list[float]`): the mean score of each member on the validation split, after `fit`.
    """

    def __init__(self, index: int | None = None) -> None:
        self.index = index
        self.scores: list[float] = []

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        if self.index is None:
            raise ConfigError(
                "best_member does not know which member is the best: give its number, as in "
                "get_baseline('best_member', index=0), or call fit(members, prompts, score_fn) on a validation split"
            )
        check_member("index", self.index, ensemble)
        alone(ensemble, self.index)

    def choose(self, ensemble: EnsembleForCausalLM, score: Callable[[Baseline], float]) -> None:
        """See [`Baseline`]; every member answers all prompts."""
        self.scores = [score(BestMember(index)) for index in range(len(ensemble.members))]
        self.index = self.scores.index(max(self.scores))

    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """See [`Baseline`]."""
        return answer_alone(ensemble, self.index or 0, prompts, settings)
