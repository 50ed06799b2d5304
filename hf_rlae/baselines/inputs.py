"""What baselines are called with: members, prompts and generation settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.chats.member_chats import padded
from hf_rlae.ensemble.engines.prompts import member_prompts, rows_of
from hf_rlae.errors import InputError, nearest

GivenMembers = EnsembleForCausalLM | Sequence[Any]
"""An ensemble, or a list of folders, Hub ids, `(model, tokenizer)` pairs or `Member` objects."""


def as_ensemble(members: GivenMembers) -> EnsembleForCausalLM:
    """The ensemble itself, or a new one of these members."""
    return members if isinstance(members, EnsembleForCausalLM) else EnsembleForCausalLM.from_members(members)


@dataclass(frozen=True)
class Prompts:
    """A batch of B prompts in the ids of M members.

    Attributes:
        inputs (`dict[str, torch.Tensor]`): for the ensemble's `generate`.
        rows (`list[list[tuple[int, ...]]]`): the ids by row and member.
        given (`list`): the texts or messages.
    """

    inputs: dict[str, torch.Tensor]
    rows: list[list[tuple[int, ...]]]
    given: list[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def of_member(self, index: int, pad: int) -> dict[str, torch.Tensor]:
        """The inputs of one member's `generate`."""
        ids, mask = padded([row[index] for row in self.rows], pad)
        return {"input_ids": ids, "attention_mask": mask}


def encode_prompts(ensemble: EnsembleForCausalLM, prompts: Sequence[Any]) -> Prompts:
    """Encodes texts, or renders and encodes messages, for every member.

    Raises:
        InputError: prompts that are neither, or of both kinds, or longer than a member's context.
    """
    tokenizer, device = ensemble.tokenizer, ensemble.device
    if all(isinstance(prompt, str) for prompt in prompts):
        encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
        ids, mask = encoded["input_ids"].long(), encoded["attention_mask"]
        own = tokenizer.own_prompts(ids, mask)
        if own:
            rows = member_prompts(own["member_input_ids"], own["member_attention_mask"])
        else:
            rows = [ensemble.engine.encode_prompt(row) for row in rows_of(ids, mask)]
        inputs = {"input_ids": ids, "attention_mask": mask}
    elif all(isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], dict) for prompt in prompts):
        chats = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True)
        inputs = {name: chats[name] for name in chats}
        rows = member_prompts(inputs["member_input_ids"], inputs["member_attention_mask"])
    else:
        raise InputError(f"prompts must be texts, or lists of messages, and all of one kind, got {prompts[0]!r:.80}")
    for index, member in enumerate(ensemble.members):
        longest = max(len(row[index]) for row in rows)
        if member.context_length is not None and longest >= member.context_length:
            raise InputError(
                f"a prompt has {longest} tokens for member {member.name}, whose context has {member.context_length}; "
                "shorten the prompts"
            )
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return Prompts(inputs, [list(row) for row in rows], list(prompts))


def settings_of(
    ensemble: EnsembleForCausalLM, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> GenerationConfig:
    """The merged generation settings of a call, as `generate` merges them.

    Raises:
        InputError: an unknown setting, no `max_new_tokens`, or settings that give several completions per prompt.
    """
    known = GenerationConfig().to_dict()
    for name in kwargs:
        if name not in known:
            raise InputError(f"{name} is no setting of a GenerationConfig: {nearest(name, known)}")
        if name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            raise InputError(f"{name}: baselines end texts where their members do; set `end_token_ids` of the members")
    settings: GenerationConfig = ensemble._prepare_generation_config(generation_config, **kwargs)[0]  # type: ignore[misc]
    if settings.max_new_tokens is None:
        raise InputError("max_new_tokens is missing: say how long completions may be, such as max_new_tokens=256")
    for name in ("num_beams", "num_return_sequences"):
        if (getattr(settings, name) or 1) != 1:
            raise InputError(
                f"{name}={getattr(settings, name)}: baselines write one completion per prompt; leave it out"
            )
    settings.max_length = None  # else transformers warns of two limits
    return settings


def completion_text(tokenizer: Any, prompt: Sequence[int], completion: Sequence[int]) -> str:
    """The text of a completion, with the space in front of it that decoding it alone may drop."""
    before, whole = (
        str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in (prompt, [*prompt, *completion])
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(list(completion), skip_special_tokens=True))
