"""What is wrong with an ensemble, a policy or a dataset, said before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.utils import is_peft_available

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.objectives import objectives
from hf_rlae.policy import PolicyModel
from hf_rlae.trainer.configuration_rlae import RLAEConfig


def check_policy(ensemble: EnsembleForCausalLM, args: RLAEConfig) -> None:
    """Raises where the ensemble cannot be trained as asked; sets the span length that was asked for.

    Raises:
        ConfigError: not an ensemble, no learned policy, an actor that the objective cannot train, a mixing that it
            cannot differentiate, or a policy that reads text without a tokenizer.
    """
    if not isinstance(ensemble, EnsembleForCausalLM):
        raise ConfigError(
            f"model is a {type(ensemble).__name__}; give an EnsembleForCausalLM, made by "
            "`EnsembleForCausalLM.from_members([...], policy=PolicyModel(...))`"
        )
    policy = ensemble.policy
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
    if policy.config.observes_text and policy.tokenizer is None:
        raise ConfigError(
            "the policy reads text but has no tokenizer: build it with `PolicyModel.from_encoder(...)`, or "
            "`PolicyModel(config, tokenizer)` with the encoder's"
        )
    if args.span_length is not None:
        ensemble.config.span_length = args.span_length
    policy.config.span_length = ensemble.config.span_length


def check_datasets(ensemble: EnsembleForCausalLM, train_dataset: Any, eval_dataset: Any) -> None:
    """Raises for datasets that cannot be learned from.

    Raises:
        ConfigError: no dataset, an empty one, or one without prompts.
        InputError: a prompt that leaves a member's context no room.
    """
    if train_dataset is None:
        raise ConfigError("train_dataset is missing; give a datasets.Dataset with a column `prompt`")
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
        if dataset is None:
            continue
        if not hasattr(dataset, "__len__"):
            raise ConfigError(
                f"{name} is a {type(dataset).__name__}, whose length is not known; give a datasets.Dataset"
            )
        if not len(dataset):
            raise ConfigError(f"{name} is empty; give at least one example")
        columns = list(dataset[0])
        if "prompt" not in columns:
            raise ConfigError(
                f"{name} has no column 'prompt' (it has {', '.join(columns)}); rename the column that holds the "
                "prompts, or load the data by `hf_rlae.tasks.load_task`"
            )
        _check_prompts(ensemble, name, dataset["prompt"])


def _check_prompts(ensemble: EnsembleForCausalLM, name: str, prompts: Any) -> None:
    prompts = list(prompts)
    kinds = {
        str if isinstance(prompt, str) else list if isinstance(prompt, list) else type(prompt) for prompt in prompts
    }
    if kinds not in ({str}, {list}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(f"{name}: prompts must all be strings, or all be lists of messages, found {found}")
    for index, member in enumerate(ensemble.members):
        if member.context_length is None:
            continue
        tokenizer = ensemble.members[0].tokenizer if ensemble.union is None else member.tokenizer
        if kinds == {str}:
            lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        elif member.tokenizer.chat_template:
            texts = member.tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
            lengths = [len(ids) for ids in member.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        else:
            raise ConfigError(
                f"{name}: prompts are messages, but member {member.name} (number {index}) has no chat template; set "
                "its tokenizer's `chat_template`, or give plain strings"
            )
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] >= member.context_length:
            raise InputError(
                f"{name}: the prompt of row {longest} has {lengths[longest]} tokens for member {member.name}, which "
                f"was built for at most {member.context_length}; leave long prompts out, or the member"
            )


def wrap_policy(ensemble: EnsembleForCausalLM, peft_config: Any) -> Any:
    """The policy that is trained: the ensemble's own, or with LoRA on its encoder.

    Raises:
        ConfigError: `peft_config` for a policy without an encoder, or peft is not installed.
    """
    policy = ensemble.policy
    if peft_config is None:
        return policy
    if policy.encoder is None:
        raise ConfigError(
            f"peft_config: the policy has no encoder to adapt (observation={policy.config.observation!r}), and its "
            "heads are small; leave peft_config out, or build the policy with `PolicyModel.from_encoder(...)`"
        )
    if not is_peft_available():
        raise ConfigError("peft_config needs peft, which is not installed: pip install 'hf_rlae[train]'")
    from peft import get_peft_model

    saved = set(peft_config.modules_to_save or ())
    peft_config.modules_to_save = sorted(saved | {"heads"})
    targets = peft_config.target_modules
    if isinstance(targets, str) and targets == "all-linear":
        peft_config.target_modules = r"encoder\..*(?:query|key|value|dense|Wqkv|Wo|Wi|q_proj|k_proj|v_proj|o_proj).*"
    wrapped = get_peft_model(policy, peft_config)
    ensemble.set_policy(wrapped)
    return wrapped
