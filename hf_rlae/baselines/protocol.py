"""What a baseline is: one call for every way in which several members answer prompts."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import GenerationConfig

from hf_rlae.baselines.inputs import GivenMembers, Prompts, as_ensemble, encode_prompts, settings_of
from hf_rlae.checks import COUNT, check_number
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, InputError

ScoreFn = Callable[[list[str]], Sequence[float]]
"""Scores the completions of prompts, one number per completion, the larger the better."""


@dataclass(frozen=True)
class BaselineOutput:
    """The completions of B prompts, and what they cost.

    Attributes:
        texts (`list[str]`): the completions.
        num_tokens (`torch.LongTensor` of shape `(B,)`): number of tokens of each completion, with the one that ends it.
        member_tokens (`torch.LongTensor` of shape `(B, M)`): number of tokens for which each member ran, without the
            prompt; with `num_tokens` for all of M members, each ran once per token.
        forward_calls (`list[int]`): number of forward passes of each member, for all rows of a batch together.
        seconds (`float`): time of the call.
        choices (`list[int]`, *optional*): the member that wrote each completion, if one member wrote it alone.
    """

    texts: list[str]
    num_tokens: torch.Tensor
    member_tokens: torch.Tensor
    forward_calls: list[int]
    seconds: float = 0.0
    choices: list[int] | None = None

    @classmethod
    def joined(cls, parts: Sequence[BaselineOutput]) -> BaselineOutput:
        """The output of several batches as one."""
        chosen = [part.choices for part in parts]
        return cls(
            [text for part in parts for text in part.texts],
            torch.cat([part.num_tokens for part in parts]),
            torch.cat([part.member_tokens for part in parts]),
            [sum(calls) for calls in zip(*(part.forward_calls for part in parts), strict=True)],
            sum(part.seconds for part in parts),
            None if None in chosen else [choice for own in chosen for choice in own or ()],
        )


class Baseline(ABC):
    """A way in which several members answer prompts.

    Subclasses implement `answer` for one batch, and register themselves under a name (`baselines.register`).

    Attributes:
        samples (`bool`): whether the method is defined for `do_sample=True`.
    """

    samples = True

    @torch.no_grad()
    def generate(
        self,
        members: GivenMembers,
        prompts: Sequence[Any],
        generation_config: GenerationConfig | None = None,
        *,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> BaselineOutput:
        """Writes a completion of each prompt.

        Args:
            members (`EnsembleForCausalLM` or `Sequence`): an ensemble, or what `from_members` takes. Only the baselines
                that decode by a policy use an ensemble's settings. What a baseline has built for an ensemble is kept.
            prompts (`Sequence[str]` or `Sequence[list[dict]]`): texts, or messages, which are rendered by every
                member's own chat template.
            generation_config (`GenerationConfig`, *optional*), kwargs: as in transformers' `generate`, one completion
                per prompt and without beams; `max_new_tokens` is needed. Other defaults are the ensemble's.
            batch_size (`int`, defaults to 8): number of prompts that are answered together.

        Returns:
            `BaselineOutput`: completions and costs.

        Raises:
            InputError: prompts that are no texts, or settings that the baseline cannot decode with.
            ConfigError: a baseline that must be fitted first, or settings for another number of members.
        """
        check_number("batch_size", batch_size, COUNT)
        ensemble = as_ensemble(members)
        settings = settings_of(ensemble, generation_config, kwargs)
        if settings.do_sample and not self.samples:
            raise InputError(f"do_sample=True: {type(self).__name__} is defined for greedy decoding; leave it out")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise InputError(f"prompts must be a list of texts or of messages, at least one, got {prompts!r:.80}")
        self.prepare(ensemble)
        parts = []
        for start in range(0, len(prompts), batch_size):
            began = time.perf_counter()
            encoded = encode_prompts(ensemble, prompts[start : start + batch_size])
            part = self.answer(ensemble, encoded, settings)
            parts.append(dataclasses.replace(part, seconds=time.perf_counter() - began))
        return BaselineOutput.joined(parts)

    def fit(
        self,
        members: GivenMembers,
        prompts: Sequence[Any],
        score_fn: ScoreFn,
        generation_config: GenerationConfig | None = None,
        *,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> Self:
        """Chooses what the baseline leaves open, on prompts of a validation split; most leave nothing open.

        Args:
            members, prompts, generation_config, batch_size, kwargs: as in `generate`.
            score_fn (callable): takes the completions of all prompts in their order, and returns one number each, the
                larger the better.

        Returns:
            the baseline itself.
        """
        if type(self).choose is Baseline.choose:
            return self  # members that are given by name are not loaded for nothing
        ensemble = as_ensemble(members)

        def score(baseline: Baseline) -> float:
            output = baseline.generate(ensemble, prompts, generation_config, batch_size=batch_size, **kwargs)
            return mean_score(score_fn, output.texts)

        self.choose(ensemble, score)
        return self

    def choose(self, ensemble: EnsembleForCausalLM, score: Callable[[Baseline], float]) -> None:  # noqa: B027
        """The work of `fit`; does nothing where a baseline leaves nothing open.

        Args:
            ensemble (`EnsembleForCausalLM`): that of the members.
            score (callable): the mean score of another baseline on the validation split.
        """

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:  # noqa: B027 (not every baseline needs it)
        """Called before any member runs, and not timed: checks the settings, builds what an ensemble needs once.

        Raises:
            ConfigError: the settings are for other members.
        """

    @abstractmethod
    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """Completes one batch of prompts."""


def mean_score(score_fn: ScoreFn, texts: list[str]) -> float:
    """The mean of the scores of completions.

    Raises:
        ConfigError: another number of scores than completions.
    """
    scores = [float(score) for score in score_fn(texts)]
    if len(scores) != len(texts):
        raise ConfigError(f"score_fn returned {len(scores)} scores for {len(texts)} completions; return one for each")
    return sum(scores) / len(scores)


def check_member(name: str, index: int, ensemble: EnsembleForCausalLM) -> None:
    """Raises `ConfigError` for the number of a member that an ensemble does not have."""
    count = len(ensemble.members)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise ConfigError(f"{name}={index!r}: give the number of a member, from 0 to {count - 1}")
