"""Baselines that decode as an ensemble does, with a policy: the ensemble's own, or one without training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig

from hf_rlae.baselines.costs import member_tokens
from hf_rlae.baselines.inputs import Prompts, completion_text
from hf_rlae.baselines.protocol import Baseline, BaselineOutput
from hf_rlae.baselines.registry import baselines
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import present
from hf_rlae.policies import EntropyPolicy, GivenPolicy, PerplexityPolicy, Policy, UniformPolicy, resolve_policy
from hf_rlae.vocabulary import token_ids


def decode_ensemble(
    ensemble: EnsembleForCausalLM,
    inputs: dict[str, Any],
    settings: GenerationConfig,
    policy: Policy | None = None,
) -> BaselineOutput:
    """The ensemble's `generate`, with its own policy or another one for this call."""
    cache = ensemble.new_cache(settings.use_cache is not False, record=True, policy=policy)
    options: dict[str, Any] = {"tokenizer": ensemble.tokenizer} if settings.stop_strings else {}
    settings = copy.deepcopy(settings)
    settings.return_dict_in_generate = True
    output: Any = ensemble.generate(**inputs, generation_config=settings, past_key_values=cache, **options)
    start = inputs["input_ids"].shape[1]
    ends = set(token_ids(settings.eos_token_id))
    texts, counts = [], []
    pairs = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    for (row, mask), written in zip(pairs, output.sequences[:, start:].tolist(), strict=True):
        stop = next((at for at, token in enumerate(written) if token in ends), len(written) - 1)
        prompt = [token for token, keep in zip(row, mask, strict=True) if keep]
        texts.append(completion_text(ensemble.tokenizer, prompt, written[: stop + 1]))
        counts.append(stop + 1)
    runs = present(cache.call, "the call of a cache").runs
    return BaselineOutput(
        texts,
        torch.tensor(counts),
        member_tokens(ensemble, output, policy).cpu(),
        [run.forward_calls for run in runs],
    )


@baselines.register("ensemble")
class EnsembleBaseline(Baseline):
    """The ensemble as it is, or with another policy; with it, a policy is called as every other baseline is.

    Args:
        policy (`Policy`, `str` or `os.PathLike`, *optional*): as in `EnsembleForCausalLM.from_members`; `None` = the
            ensemble's own.

    Raises:
        ConfigError, PolicyError: no such policy, or one that does not fit the members.
    """

    def __init__(self, policy: GivenPolicy | None = None) -> None:
        self.policy = resolve_policy(policy)

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        if self.policy is not None:
            ensemble.check_policy(self.policy)

    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """See [`Baseline`]."""
        return decode_ensemble(ensemble, prompts.inputs, settings, self.policy)


@baselines.register("uniform")
class UniformBaseline(EnsembleBaseline):
    """Equal weights at every token, with the ensemble's mixing; see [`UniformPolicy`]."""

    def __init__(self) -> None:
        super().__init__(UniformPolicy())


@baselines.register("perplexity")
class PerplexityBaseline(EnsembleBaseline):
    """Weights by the members' perplexities of the prompt; see [`PerplexityPolicy`].

    Source: PackLLM (arXiv 2404.11531), "PackLLM-sim".

    Args:
        temperature (`float`, defaults to 1.0): see the policy.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(PerplexityPolicy(temperature))


@baselines.register("entropy")
class EntropyBaseline(EnsembleBaseline):
    """More weight for members that are confident at the start of a span; see [`EntropyPolicy`].

    Source: ours.

    Args:
        temperature (`float`, defaults to 1.0): see the policy.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(EntropyPolicy(temperature))
