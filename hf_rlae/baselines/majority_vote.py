"""A vote over the members' finished answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from transformers import GenerationConfig

from hf_rlae.baselines.inputs import Prompts
from hf_rlae.baselines.own_answers import alone, answer_alone, chosen_answers
from hf_rlae.baselines.protocol import Baseline, BaselineOutput
from hf_rlae.baselines.registry import baselines
from hf_rlae.checks import check_choice
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.rewards.exact_match_rule import normalize_answer
from hf_rlae.rewards.letter_rule import extract_letter
from hf_rlae.rewards.number_rule import extract_number

AnswerFn = Callable[[str], Hashable | None]
"""Reads the answer of a completion; `None` if it has none."""

_READERS: dict[str, AnswerFn] = {"text": normalize_answer, "number": extract_number, "letter": extract_letter}


@baselines.register("majority_vote")
class MajorityVote(Baseline):
    """Every member answers, and the most frequent answer wins; the first member that gave it has written the text.

    Completions without an answer do not vote. Of answers with equally many votes, that of the earlier member wins, so
    with two members the first decides wherever it has an answer: give the best member first.

    Source: self-consistency (arXiv 2203.11171) for a majority vote over answers, there of one model's samples.

    Args:
        answer (`str` or callable, defaults to `"text"`): what is counted. `"text"`: the whole completion, in the form
            in which the reward `exact_match` compares; `"number"` and `"letter"`: what the rewards of these names read;
            or a function of the completion, which returns `None` where there is no answer.

    Example:

    >>> MajorityVote("number").winner(["It is 4.", "So 5.", "5"])
    1
    """

    def __init__(self, answer: str | AnswerFn = "text") -> None:
        if not callable(answer):
            check_choice("answer", answer, _READERS)
        self.read: AnswerFn = _READERS[answer] if isinstance(answer, str) else answer

    def winner(self, texts: Sequence[str]) -> int:
        """The member whose completion wins.

        Args:
            texts (`Sequence[str]`): one completion per member.
        """
        answers = [self.read(text) for text in texts]
        votes = [0 if answer is None else answers.count(answer) for answer in answers]
        return votes.index(max(votes))

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        for index in range(len(ensemble.members)):
            alone(ensemble, index)

    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """See [`Baseline`]."""
        answers = [answer_alone(ensemble, index, prompts, settings) for index in range(len(ensemble.members))]
        texts = zip(*(answer.texts for answer in answers), strict=True)
        return chosen_answers(answers, [self.winner(own) for own in texts])
