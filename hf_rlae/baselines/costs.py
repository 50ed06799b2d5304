"""What a generated text cost: how many tokens each member was run for."""

from __future__ import annotations

import torch

from hf_rlae.ensemble import EnsembleForCausalLM, EnsembleGenerateOutput
from hf_rlae.ensemble.member_tokens import count_member_tokens
from hf_rlae.errors import InputError
from hf_rlae.objectives import spans_of_tokens
from hf_rlae.policies import Policy, observed_tokens
from hf_rlae.vocabulary import token_ids


def member_tokens(
    ensemble: EnsembleForCausalLM, output: EnsembleGenerateOutput, policy: Policy | None = None
) -> torch.Tensor:
    """The number of tokens of each completion for which each member ran, up to and including the token that ends it.

    See [`count_member_tokens`] for what is counted.

    Args:
        ensemble (`EnsembleForCausalLM`): generated the output.
        output (`EnsembleGenerateOutput`): of `generate(..., return_dict_in_generate=True)`, without beams.
        policy (`Policy`, *optional*): the policy of the call; defaults to the ensemble's own.

    Returns:
        `torch.LongTensor` of shape `(B, M)`.

    Raises:
        InputError: an output without a trace.

    Example:

    >>> from hf_rlae import StaticPolicy, load_demo_members
    >>> ensemble = EnsembleForCausalLM.from_members(load_demo_members(), StaticPolicy([1, 1, 0]))
    >>> inputs = ensemble.tokenizer(["7+5="], return_tensors="pt")
    >>> output = ensemble.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True)
    >>> member_tokens(ensemble, output).tolist()
    [[6, 6, 0]]
    """
    if not isinstance(output, EnsembleGenerateOutput) or output.span_weights is None or output.member_logps is None:
        raise InputError(
            f"output must be an EnsembleGenerateOutput, got {type(output).__name__}; call `generate` with "
            "return_dict_in_generate=True, and without beams"
        )
    tokens = output.member_logps.shape[1]
    ids = output.sequences[:, output.sequences.shape[1] - tokens :]
    ends = torch.tensor(token_ids(ensemble.generation_config.eos_token_id), device=ids.device, dtype=ids.dtype)
    is_end = torch.isin(ids, ends)
    mask = (is_end.cumsum(1) - is_end.long()) == 0
    span_index, _ = spans_of_tokens(mask, ensemble.config.tokens_per_weights)
    policy = ensemble.policy if policy is None else policy
    observes, ahead = observed_tokens(policy) > 0, getattr(policy, "lookahead_tokens", 0)
    return count_member_tokens(output.span_weights, span_index, output.drawn_members, observes, ahead).sum(1)
