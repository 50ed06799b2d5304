"""The answers that each member writes by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from hf_rlae.baselines.by_policy import decode_ensemble
from hf_rlae.baselines.inputs import Prompts
from hf_rlae.baselines.per_ensemble import kept
from hf_rlae.baselines.protocol import BaselineOutput
from hf_rlae.ensemble import EnsembleForCausalLM

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def alone(ensemble: EnsembleForCausalLM, index: int) -> EnsembleForCausalLM:
    """An ensemble of one of the members, built once."""
    member = ensemble.members[index]
    return kept(ensemble, f"member {index}", lambda: EnsembleForCausalLM.from_members([member]))


def answer_alone(
    ensemble: EnsembleForCausalLM, index: int, prompts: Prompts, settings: GenerationConfig
) -> BaselineOutput:
    """One member's completions; the costs have a column for every member.

    The member reads its own rendering of the prompts. It decodes with the settings of the ensemble, not with the
    defaults of its own generation config, such as a repetition penalty, so that methods differ in nothing else.
    """
    one = alone(ensemble, index)
    own = copy.deepcopy(settings)
    for name in _IDS:
        setattr(own, name, getattr(one.generation_config, name))
    pad = one.tokenizer.pad_token_id
    inputs = prompts.of_member(index, pad if isinstance(pad, int) else 0)
    inputs = {name: value.to(one.device) for name, value in inputs.items()}
    found = decode_ensemble(one, inputs, own)
    tokens = torch.zeros(len(prompts), len(ensemble.members), dtype=torch.long)
    tokens[:, index] = found.member_tokens[:, 0]
    calls = [found.forward_calls[0] if at == index else 0 for at in range(len(ensemble.members))]
    return BaselineOutput(found.texts, found.num_tokens, tokens, calls, choices=[index] * len(prompts))


def chosen_answers(answers: Sequence[BaselineOutput], choices: Sequence[int]) -> BaselineOutput:
    """The completion of one member per prompt, at the cost of all.

    Args:
        answers (`Sequence[BaselineOutput]`): of each member.
        choices (`Sequence[int]`): the member per prompt.
    """
    return BaselineOutput(
        [answers[choice].texts[row] for row, choice in enumerate(choices)],
        torch.stack([answers[choice].num_tokens[row] for row, choice in enumerate(choices)]),
        torch.stack([answer.member_tokens for answer in answers]).sum(0),
        [sum(calls) for calls in zip(*(answer.forward_calls for answer in answers), strict=True)],
        choices=list(choices),
    )
