"""What is wrong with an ensemble, a policy or a dataset, said before anything is run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_peft_available

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.objectives import objectives
from hf_rlae.policies import PolicyModel
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig

logger = logging.getLogger(__name__)


def check_policy(ensemble: EnsembleForCausalLM, args: RLAEConfig) -> None:
    """Raises where the ensemble cannot be trained as asked; sets the span length that was asked for.

    Raises:
        ConfigError: not an ensemble, no learned policy, an actor that the objective cannot train, a mixing that it
            cannot differentiate, draws whose texts it does not describe, a policy that reads text without a
            tokenizer, or activation checkpointing without an encoder.
    """
    if not isinstance(ensemble, EnsembleForCausalLM):
        raise ConfigError(
            f"model is a {type(ensemble).__name__}; give an EnsembleForCausalLM, made by "
            "`EnsembleForCausalLM.from_members([...], policy=PolicyModel(...))`"
        )
    policy = ensemble.policy
    if not isinstance(policy, PolicyModel) and hasattr(policy, "merge_and_unload"):
        raise ConfigError(
            "model holds a policy with the adapter of an earlier training; merge it before the next one: "
            "`ensemble.set_policy(ensemble.policy.merge_and_unload())`"
        )
    if not isinstance(policy, PolicyModel):
        raise ConfigError(
            f"model holds a {type(policy).__name__}, which has nothing to learn; give the ensemble a PolicyModel: "
            "`ensemble.set_policy(PolicyModel(PolicyConfig.for_members(ensemble.members, actor=...)))`"
        )
    objective = objectives[args.objective]
    if policy.config.actor not in objective.actors:
        raise ConfigError(
            f"objective={args.objective!r} trains an actor of kind {' or '.join(map(repr, objective.actors))}, but the "
            f"policy has actor={policy.config.actor!r}; make the policy with `PolicyConfig.for_members(members, "
            f"actor={objective.actors[0]!r})`, or choose another objective"
        )
    if "member_logps" in objective.batch_axes and ensemble.config.mixing != "linear":
        raise ConfigError(
            f"objective={args.objective!r} differentiates through linear mixing, but the ensemble has "
            f"mixing={ensemble.config.mixing!r}; take 'ppo' or 'mappo', or mixing='linear'"
        )
    if "member_logps" in objective.batch_axes and ensemble.config.draw not in (None, "token"):
        raise ConfigError(
            f"objective={args.objective!r} learns from the mixture of every token, but with "
            f"draw={ensemble.config.draw!r} texts come from a mixture of {ensemble.config.draw}s, whose gradient is "
            "another; take draw='token', or none, or 'ppo' or 'mappo'"
        )
    if args.gradient_checkpointing and not policy.config.observes_text:
        raise ConfigError(
            f"activation_checkpointing=True, but the policy has no encoder (observation={policy.config.observation!r}) "
            "whose activations could be computed anew; leave it out"
        )
    warped = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    if "member_logps" in objective.batch_axes and warped != {"temperature": 1.0, "top_p": 1.0, "top_k": 0}:
        logger.warning(
            "objective=%r learns from the probabilities of the mixture itself, but texts are sampled with %s, so its "
            "ratios are biased; leave these out unless that is on purpose",
            args.objective,
            ", ".join(f"{name}={value:g}" for name, value in warped.items()),
        )
    if policy.config.observes_text and policy.tokenizer is None:
        raise ConfigError(
            "the policy reads text but has no tokenizer: build it with `PolicyModel.from_encoder(...)`, or "
            "`PolicyModel(config, tokenizer)` with the encoder's"
        )
    if args.span_length is not None:
        ensemble.config.span_length = args.span_length
    policy.config.span_length = ensemble.config.span_length


def check_datasets(ensemble: EnsembleForCausalLM, args: RLAEConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """Raises for datasets that cannot be learned from.

    Raises:
        ConfigError: no dataset, an empty one, one without prompts, or too few prompts for a rollout.
        InputError: an empty prompt, or one that leaves a member's context no room.
    """
    if train_dataset is None:
        raise ConfigError("train_dataset is missing; give a datasets.Dataset with a column `prompt`")
    check_dataset(ensemble, args, "train_dataset", train_dataset)
    check_evaluated(ensemble, args, eval_dataset)
    wanted = (args.generation_batch_size or 0) // args.num_generations
    if len(train_dataset) < wanted:
        raise ConfigError(
            f"train_dataset has {len(train_dataset)} prompts, but a rollout of {args.generation_batch_size} texts "
            f"needs {wanted} different ones; give more prompts, a larger num_generations ({args.num_generations} now), "
            "or a smaller generation_batch_size"
        )


def check_evaluated(ensemble: EnsembleForCausalLM, args: RLAEConfig, eval_dataset: Any) -> None:
    """Raises as `check_datasets` for a dataset to be evaluated, or several by name; `None` is none."""
    for name, dataset in (
        eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    ).items():
        if dataset is None:
            continue
        check_dataset(ensemble, args, name, dataset)
        batch = args.per_device_eval_batch_size * args.world_size
        if args.dataloader_drop_last and len(dataset) * args.num_generations_eval < batch:
            raise ConfigError(
                f"{name} has {len(dataset)} prompts, less than one batch of {batch} texts, and dataloader_drop_last="
                "True leaves out batches that are not full; give a smaller per_device_eval_batch_size"
            )


def check_reward_columns(required: Mapping[str, str], train_dataset: Any, eval_dataset: Any) -> None:
    """Raises for datasets without a column that a reward function needs.

    Args:
        required (`Mapping[str, str]`): see [`RewardCalls.required_columns`].
        train_dataset, eval_dataset: datasets, several by name, or `None`, already checked otherwise.

    Raises:
        ConfigError: names the dataset, the column and the reward.
    """
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
        for column, reward in required.items():
            if dataset is not None and column not in dataset.column_names:
                raise ConfigError(
                    f"{name} has no column {column!r}, which the reward {reward} needs (it has "
                    f"{', '.join(dataset.column_names)}); rename the column that holds these values, or load the data "
                    "by `hf_rlae.tasks.load_task`"
                )


def check_dataset(ensemble: EnsembleForCausalLM, args: RLAEConfig, name: str, dataset: Any) -> None:
    """Raises for one dataset; see `check_datasets`."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        hint = "`Dataset.from_list(rows)` makes one of rows" if isinstance(dataset, list) else "it has a length"
        raise ConfigError(f"{name} is a {type(dataset).__name__}; give a datasets.Dataset ({hint})")
    if not len(dataset):
        raise ConfigError(f"{name} is empty; give at least one example")
    columns = dataset.column_names
    if "prompt" not in columns:
        raise ConfigError(
            f"{name} has no column 'prompt' (it has {', '.join(columns)}); rename the column that holds the "
            "prompts, or load the data by `hf_rlae.tasks.load_task`"
        )
    _check_prompts(ensemble, args, name, dataset["prompt"])


def _check_prompts(ensemble: EnsembleForCausalLM, args: RLAEConfig, name: str, prompts: Any) -> None:
    prompts = list(prompts)
    kinds = {
        str if isinstance(prompt, str) else list if isinstance(prompt, list) else type(prompt) for prompt in prompts
    }
    if kinds not in ({str}, {list}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(f"{name}: prompts must all be strings, or all be lists of messages, found {found}")
    known: dict[int, list[int]] = {}
    room: list[int | None] = []
    for index, member in enumerate(ensemble.members):
        lengths = _lengths(ensemble, index, name, prompts, known)
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        limit = member.context_length
        if limit is not None and lengths[longest] >= limit:
            raise InputError(
                f"{name}: the prompt of row {longest} has {lengths[longest]} tokens for member {member.name}, which "
                f"was built for at most {limit}; leave long prompts out, or the member"
            )
        if index == 0 and not min(lengths):
            raise InputError(f"{name}: the prompt of row {lengths.index(0)} is empty; leave it out, or give it a text")
        room.append(None if limit is None else limit - lengths[longest])
    left = [tokens for tokens in room if tokens is not None]
    if len(left) == len(room) and max(left) < args.max_completion_length:
        logger.warning(
            "max_completion_length=%d, but after the longest prompt of %s no member was built for more than %d further "
            "tokens; give a smaller max_completion_length, or shorter prompts",
            args.max_completion_length,
            name,
            max(left),
        )


def _lengths(
    ensemble: EnsembleForCausalLM, index: int, name: str, prompts: list[Any], known: dict[int, list[int]]
) -> list[int]:
    """The tokens that a member reads of every prompt; those of strings are kept in `known`, by tokenizer."""
    member = ensemble.members[index]
    if isinstance(prompts[0], str):
        tokenizer = ensemble.members[0].tokenizer if ensemble.union is None else member.tokenizer
        if id(tokenizer) not in known:
            known[id(tokenizer)] = [len(ids) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
        return known[id(tokenizer)]
    if not member.tokenizer.chat_template:
        raise ConfigError(
            f"{name}: prompts are messages, but member {member.name} (number {index}) has no chat template; set "
            "its tokenizer's `chat_template`, or give plain strings"
        )
    texts = member.tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    return [len(ids) for ids in member.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def wrap_policy(ensemble: EnsembleForCausalLM, peft_config: Any) -> Any:
    """The policy that is trained: the ensemble's own, or with LoRA on its encoder.

    Raises:
        ConfigError: a policy in half precision without `peft_config`; or `peft_config` for a policy without an
            encoder, or peft is not installed.
    """
    policy: Any = ensemble.policy
    if peft_config is None:
        halved = sorted({str(p.dtype) for p in policy.parameters() if p.requires_grad and p.dtype != torch.float32})
        if halved:
            raise ConfigError(
                f"the policy has parameters in {', '.join(halved)}, whose updates would be lost in rounding; train it "
                "in float32 (`policy.float()`; bf16=True computes in bfloat16 all the same), or give a peft_config"
            )
        return policy
    if policy.encoder is None:
        raise ConfigError(
            f"peft_config: the policy has no encoder to adapt (observation={policy.config.observation!r}), and its "
            "heads are small; leave peft_config out, or build the policy with `PolicyModel.from_encoder(...)`"
        )
    if not is_peft_available():
        raise ConfigError("peft_config needs peft, which is not installed: pip install 'hf_rlae[train]'")
    from peft import get_peft_model

    adapter = copy.deepcopy(peft_config)  # peft writes into what it is given
    adapter.modules_to_save = sorted({*(adapter.modules_to_save or ()), "heads"})
    targets = adapter.target_modules
    if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
        adapter.target_modules = _linear_layers(policy)
    wrapped = get_peft_model(policy, adapter)
    ensemble.set_policy(wrapped)
    return wrapped


def _linear_layers(policy: PolicyModel) -> list[str]:
    """The encoder's linear layers by name; not its pooler, which takes no part in what a policy reads."""
    return [
        name
        for name, module in policy.named_modules()
        if name.startswith("encoder.") and "pooler" not in name and isinstance(module, nn.Linear | Conv1D)
    ]
