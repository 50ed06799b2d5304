"""The log-probability of given completions under an ensemble, by its own teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import InputError
from hf_rlae.policies import Policy

_MAX_CELLS = 2**24
"""Maximum number of log-probabilities in memory; beyond it texts are scored in parts."""


def encode(ensemble: EnsembleForCausalLM, prompts: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The inputs of `generate` for texts or for messages, which every member's own chat template renders."""
    tokenizer = ensemble.tokenizer
    if isinstance(prompts[0], str):
        encoded: Any = tokenizer(list(prompts), return_tensors="pt", padding=True)
        names: list[str] = ["input_ids", "attention_mask"]
    else:
        encoded = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True)
        names = list(encoded)
    return {name: encoded[name].to(ensemble.device) for name in names}


def completion_ids(ensemble: EnsembleForCausalLM, text: str) -> list[int]:
    """The ids with which an ensemble writes a text after a prompt."""
    of_tokenizer = getattr(ensemble.tokenizer, "completion_ids", None)
    if of_tokenizer is not None:
        return list(of_tokenizer(text))
    return list(ensemble.engine.vocabularies[0].inner_ids(text.encode("utf-8", "surrogatepass")))


@torch.no_grad()
def completion_logps(
    ensemble: EnsembleForCausalLM, prompts: Sequence[Any], completions: Sequence[str], policy: Policy | None = None
) -> tuple[list[float], list[int]]:
    """The log-probability of one completion of each prompt, along the ids with which the ensemble writes it.

    Args:
        ensemble (`EnsembleForCausalLM`): with the policy that is measured; `member_input_ids` of chats are its own.
        prompts (`Sequence[str]` or `Sequence[list[dict]]`): B texts or messages, all of one kind.
        completions (`Sequence[str]`): B texts, with the space that separates them from their prompts.
        policy (`Policy`, *optional*): in place of the ensemble's own.

    Returns:
        `tuple[list[float], list[int]]`: log-probabilities in nats (minus infinity if no member can write the text), and
        numbers of tokens.

    Raises:
        InputError: an empty completion.

    Example:

    >>> from hf_rlae import load_demo_members
    >>> ensemble = EnsembleForCausalLM.from_members(load_demo_members())
    >>> logps, lengths = completion_logps(ensemble, ["7+5=", "7+5="], ["12", "99"])
    >>> logps[0] > logps[1], lengths
    (True, [2, 2])
    """
    inputs = encode(ensemble, prompts)
    rows = [completion_ids(ensemble, text) for text in completions]
    if not all(rows):
        raise InputError(f"completions: {completions[rows.index([])]!r} has no tokens; give a text")
    width = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows], device=ensemble.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=ensemble.device)
    # members with different tokenizers read one column at a time, so that parts of columns cost nothing there, and
    # rows are read together; others read all columns of a part of the rows at once
    reads_columns = not ensemble.engine.has_prompt_logits
    part = len(rows) if reads_columns else max(1, _MAX_CELLS // (ensemble.engine.vocab_size * width))
    found: list[float] = []
    for start in range(0, len(rows), part):
        chosen = slice(start, start + part)
        given = {name: value[chosen] for name, value in inputs.items()}
        columns = max(1, _MAX_CELLS // (ensemble.engine.vocab_size * len(ids[chosen]))) if reads_columns else width
        found += _row_sums(ensemble, given, ids[chosen], mask[chosen], policy, columns)
    return found, list(map(len, rows))


def _row_sums(
    ensemble: EnsembleForCausalLM,
    inputs: dict[str, torch.Tensor],
    ids: torch.Tensor,
    mask: torch.Tensor,
    policy: Policy | None,
    columns: int,
) -> list[float]:
    """The log-probabilities of rows, read in parts of at most `columns` columns."""
    first = inputs["input_ids"].shape[1]
    whole = torch.cat([inputs.pop("input_ids"), ids], dim=1)
    kept = torch.cat([inputs.pop("attention_mask"), mask], dim=1)
    cache = ensemble.new_cache(policy=policy)
    found, read, options = [], 0, {"prompt_length": first, **inputs}
    for start in range(0, ids.shape[1], columns):
        chosen = ids[:, start : start + columns]
        end = first + start + chosen.shape[1] - 1  # the logits of a column are for the next one
        logits = ensemble(
            input_ids=whole[:, read:end],
            attention_mask=kept[:, :end],
            past_key_values=cache,
            logits_to_keep=chosen.shape[1],
            **options,
        ).logits
        targets = ensemble.engine.to_union(chosen)[..., None].to(logits.device)
        found.append(logits.float().log_softmax(-1).gather(2, targets)[..., 0])
        read, options = end, {}
    logps = torch.cat(found, dim=1)
    sums: list[float] = logps.double().masked_fill(mask.to(logps.device) == 0, 0.0).sum(1).tolist()
    return sums
