"""Checks of an ensemble, its policy and datasets, before anything is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.objectives import objectives
from hf_rlae.policies import PolicyModel
from hf_rlae.trainers.context_check import check_longest
from hf_rlae.trainers.prompt_datasets import check_chat_template, check_prompts, named_datasets, prompts_by_dataset
from hf_rlae.trainers.ratio_bias import warn_of_biased_ratios
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.generation_options import check_values, own_options
from hf_rlae.trainers.stop_strings import stop_criterion

logger = logging.getLogger(__name__)

_WITHOUT_MEANING = {
    "quantization_config": "RLAETrainer receives loaded members; quantise them with "
    "`from_members([...], member_kwargs={'quantization_config': ...})`",
    "tools": "an ensemble writes one completion per prompt, without calls of tools",
    "rollout_func": "the policy learns from weights that the ensemble's own rollouts record; override `roll_out`",
    "environment_factory": "an ensemble writes one completion per prompt, without an environment",
}
"""Arguments of TRL's `GRPOTrainer` that are refused, and why."""


def check_policy(ensemble: EnsembleForCausalLM, args: RLAEConfig) -> None:
    """Raises if the ensemble's policy cannot be trained with these arguments.

    Raises:
        ConfigError: not an ensemble, a policy without parameters, an actor or mixing that the objective does not
            support, a policy that reads text but has no tokenizer, or gradient checkpointing or
            `encoder_batch_size` without an encoder.
    """
    if not isinstance(ensemble, EnsembleForCausalLM):
        raise ConfigError(
            f"model is a {type(ensemble).__name__}; give an EnsembleForCausalLM, made with "
            "`EnsembleForCausalLM.from_members([...], policy=PolicyModel(...))`"
        )
    policy = ensemble.policy
    if not isinstance(policy, PolicyModel):
        is_adapted = hasattr(policy, "merge_and_unload")  # by an earlier training
        own = "ensemble.policy.merge_and_unload()" if is_adapted else "PolicyModel(PolicyConfig.for_members(...))"
        raise ConfigError(
            f"model has a {type(policy).__name__}, not a trainable PolicyModel; call `ensemble.set_policy({own})`"
        )
    if args.span_length is not None and ensemble.config.select == "prompt":
        raise ConfigError(
            f'span_length={args.span_length}: the ensemble has select="prompt", so weights hold for the whole text; '
            "leave span_length out"
        )
    _check_objective(ensemble, policy, args)
    check_values(ensemble, args.generation_options, args.max_completion_length)
    stop_criterion(args.stop_strings, ensemble.tokenizer)
    if args.gradient_checkpointing and not policy.config.observes_text:
        raise ConfigError(
            "activation_checkpointing=True (gradient_checkpointing is its former name), but the policy has no encoder "
            f"(observation={policy.config.observation!r}) whose activations could be recomputed; leave it out"
        )
    if args.encoder_batch_size is not None and not policy.config.observes_text:
        raise ConfigError(
            f"encoder_batch_size={args.encoder_batch_size}, but the policy has no encoder "
            f"(observation={policy.config.observation!r}); leave it out"
        )
    if policy.config.observes_text and policy.tokenizer is None:
        raise ConfigError(
            "the policy reads text but has no tokenizer: build it with `PolicyModel.from_encoder(...)`, or with "
            "`PolicyModel(config, tokenizer)` and the encoder's tokenizer"
        )


def _check_objective(ensemble: EnsembleForCausalLM, policy: PolicyModel, args: RLAEConfig) -> None:
    objective, actor = objectives[args.objective], policy.config.actor
    if actor not in objective.actors:
        raise ConfigError(
            f"objective={args.objective!r} trains an actor of kind {' or '.join(map(repr, objective.actors))}, but the "
            f"policy has actor={actor!r}; make the policy with `PolicyConfig.for_members(members, "
            f"actor={objective.actors[0]!r})`, or choose another objective"
        )
    if "member_logps" not in objective.batch_axes:
        return
    mixing, draw = ensemble.config.mixing, ensemble.config.draw
    if mixing != "linear":
        raise ConfigError(
            f"objective={args.objective!r} differentiates through linear mixing, but the ensemble has "
            f"mixing={mixing!r}; give 'ppo' or 'mappo', or mixing='linear'"
        )
    if draw not in (None, "token"):
        raise ConfigError(
            f"objective={args.objective!r} learns from the mixture of every token, but with draw={draw!r} completions "
            f"come from a mixture of {draw}s, which has another gradient; give draw='token' or None, or take 'ppo' or "
            "'mappo'"
        )
    if ensemble.config.warp == "mixture" or draw is not None:  # else rollouts keep the warped probabilities
        warn_of_biased_ratios({**own_options(ensemble), **args.generation_options})


def check_rlae_datasets(ensemble: EnsembleForCausalLM, args: RLAEConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """Raises for datasets that cannot be used.

    Raises:
        ConfigError: a dataset that `check_prompts` refuses, too few prompts for a batch of evaluations, or messages
            that a member's tokenizer cannot render.
        InputError: an empty prompt, or one that fills a member's context.
    """
    for name, prompts in check_prompts(args, train_dataset, eval_dataset).items():
        check_prompt_lengths(ensemble, args, name, prompts)
        if name != "train_dataset":
            _check_eval_batch(args, name, prompts)


def check_eval_dataset(ensemble: EnsembleForCausalLM, args: RLAEConfig, eval_dataset: Any) -> None:
    """Raises as `check_rlae_datasets` does, for an evaluated dataset or a mapping of names to these."""
    for name, prompts in prompts_by_dataset(eval_dataset=eval_dataset).items():
        check_prompt_lengths(ensemble, args, name, prompts)
        _check_eval_batch(args, name, prompts)


def _check_eval_batch(args: RLAEConfig, name: str, prompts: list[Any]) -> None:
    batch = args.per_device_eval_batch_size * args.world_size
    if args.dataloader_drop_last and len(prompts) * args.num_generations_eval < batch:
        raise ConfigError(
            f"{name} has {len(prompts)} prompts, less than one batch of {batch} completions, and "
            "dataloader_drop_last=True drops incomplete batches; give a smaller per_device_eval_batch_size"
        )


def check_reward_columns(required: Mapping[str, str], train_dataset: Any, eval_dataset: Any) -> None:
    """Raises for datasets without a column that a reward function needs.

    Args:
        required (`Mapping[str, str]`): see [`RewardCalls.required_columns`].
        train_dataset, eval_dataset: datasets, several by name, or `None`, already checked otherwise.

    Raises:
        ConfigError: names the dataset, the column and the reward.
    """
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        for column, reward in required.items():
            if column not in dataset.column_names:
                raise ConfigError(
                    f"{name} has no column {column!r}, which the reward {reward} needs (it has "
                    f"{', '.join(dataset.column_names)}); rename the column that holds these values, or load the data "
                    "by `hf_rlae.tasks.load_task`"
                )


def check_prompt_lengths(ensemble: EnsembleForCausalLM, args: RLAEConfig, name: str, prompts: list[Any]) -> None:
    """Raises for empty prompts and prompts that fill a member's context; warns if completions have no room.

    Raises:
        ConfigError: messages that a member's tokenizer cannot render.
        InputError: names the row and the member.
    """
    room: list[float] = []
    found = _lengths(ensemble, args, name, prompts)
    for index, (member, lengths) in enumerate(zip(ensemble.members, found, strict=True)):
        hint = "remove long prompts, or the member"
        room.append(check_longest(name, lengths, member.context_length, f"member {member.name}", hint))
        if index == 0 and not min(lengths):
            raise InputError(f"{name}: the prompt of row {lengths.index(0)} is empty; remove the row")
    if max(room) < args.max_completion_length:
        logger.warning(
            "max_completion_length=%d, but after the longest prompt of %s no member has room for more than %d tokens; "
            "give a smaller max_completion_length, or shorter prompts",
            args.max_completion_length,
            name,
            max(room),
        )


def _lengths(ensemble: EnsembleForCausalLM, args: RLAEConfig, name: str, prompts: list[Any]) -> list[list[int]]:
    """For each member, the number of tokens of every prompt; every tokenizer encodes the prompts once."""
    known: dict[int, list[int]] = {}
    found = []
    options = {"add_generation_prompt": True, **(args.chat_template_kwargs or {})}  # type: ignore[dict-item]
    for index, member in enumerate(ensemble.members):
        if isinstance(prompts[0], list):
            owner = f"the tokenizer of member {member.name} (number {index})"
            check_chat_template(name, prompts, member.tokenizer, owner)
            found.append([len(ids) for ids in ensemble.tokenizer.chat_ids(index, prompts, options)])
            continue
        tokenizer: Any = ensemble.engine.prompt_tokenizers[index]
        if id(tokenizer) not in known:
            known[id(tokenizer)] = [len(ids) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
        found.append(known[id(tokenizer)])
    return found


def check_policy_adapter(ensemble: EnsembleForCausalLM, peft_config: Any) -> None:
    """Raises if the policy cannot be trained with, or without, this adapter.

    Raises:
        ConfigError: a policy in half precision without `peft_config`, or `peft_config` for a policy without an encoder.
    """
    policy: Any = ensemble.policy
    if peft_config is not None and policy.encoder is None:
        raise ConfigError(
            f"peft_config: the policy has no encoder to adapt (observation={policy.config.observation!r}); leave "
            "peft_config out, or build the policy with `PolicyModel.from_encoder(...)`"
        )
    halved = sorted({str(p.dtype) for p in policy.parameters() if p.requires_grad and p.dtype != torch.float32})
    if peft_config is None and halved:
        raise ConfigError(
            f"the policy has parameters in {', '.join(halved)}, where rounding loses updates; train it in float32 "
            "(`policy.float()`; bf16=True still computes in bfloat16), or give a peft_config"
        )


def check_arguments(ensemble: EnsembleForCausalLM, processing_class: Any, **others: Any) -> None:
    """Raises for arguments of TRL's `GRPOTrainer` that have no meaning for an ensemble.

    Args:
        ensemble (`EnsembleForCausalLM`): the model.
        processing_class: `None` or the ensemble's tokenizer.
        others: `quantization_config`, `tools`, `rollout_func` and `environment_factory`.

    Raises:
        ConfigError: names the argument, and why it is refused.
    """
    if processing_class is not None and processing_class is not ensemble.tokenizer:
        raise ConfigError(
            f"processing_class is a {type(processing_class).__name__}, but every member of an ensemble has its own "
            "tokenizer; leave it out (reward_processing_classes is the next argument, as in TRL)"
        )
    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"{name} was given, but {_WITHOUT_MEANING[name]}; leave it out")
