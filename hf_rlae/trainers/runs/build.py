"""Builds the trainer of a run, trains, evaluates, saves and publishes."""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import LoraConfig
from transformers import set_seed
from trl import get_peft_config, get_quantization_config

from hf_rlae.checks import check_choice
from hf_rlae.embedded import embedded_folder
from hf_rlae.ensemble import EnsembleConfig, EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.objectives import objectives
from hf_rlae.policies import PolicyConfig, PolicyModel, policies
from hf_rlae.tasks import get_task
from hf_rlae.trainers.adapter_checks import check_adapter
from hf_rlae.trainers.cory.ppo import CoryPPOTrainer
from hf_rlae.trainers.cory.trainer import CoryRLOOTrainer, CoryTrainer
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.rlae.trainer import RLAETrainer
from hf_rlae.trainers.runs.arguments import CoryRunArguments, EnsembleArguments, PolicyArguments, TaskArguments
from hf_rlae.trainers.runs.data import check_rewards, load_datasets, load_rewards
from hf_rlae.trainers.runs.settings import RunSettings

_CORY_TRAINERS = {"grpo": CoryTrainer, "rloo": CoryRLOOTrainer, "ppo": CoryPPOTrainer}


def build_trainer(settings: RunSettings) -> Any:
    """The trainer of a run, ready to train.

    Settings are checked before data are loaded, and data before models.

    Args:
        settings (`RunSettings`): from `read_settings`.

    Returns:
        `RLAETrainer`, `CoryTrainer`, `CoryRLOOTrainer` or `CoryPPOTrainer`.

    Raises:
        HfRlaeError: settings, data or models that cannot be used.
    """
    return (_rlae_trainer if settings.kind == "rlae" else _cory_trainer)(*settings.parts)


def run(settings: RunSettings) -> Any:
    """Trains, evaluates on the validation set if there is one, saves the result and its card, and publishes it.

    Args:
        settings (`RunSettings`): from `read_settings`.

    Returns:
        The trainer, after training.
    """
    trainer = build_trainer(settings)
    args = trainer.args
    trainer.train(resume_from_checkpoint=_checkpoint(args.resume_from_checkpoint))
    trainer.save_state()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    dataset = _hub_dataset(settings)
    trainer.save_model(args.output_dir)
    trainer.create_model_card(dataset_name=dataset)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset)
    return trainer


def _checkpoint(given: Any) -> Any:
    """`resume_from_checkpoint` of `train`: `true` on a command line is the newest checkpoint."""
    words = {"true": True, "false": None, "": None}
    return words.get(given.lower(), given) if isinstance(given, str) else given


def _hub_dataset(settings: RunSettings) -> str | None:
    task = next(part for part in settings.parts if isinstance(part, TaskArguments))
    return task.task_source or get_task(str(task.task)).hub_id


def _rlae_trainer(
    ensemble_args: EnsembleArguments, policy_args: PolicyArguments, task_args: TaskArguments, args: RLAEConfig
) -> RLAETrainer:
    rewards = check_rewards(task_args)
    _check_ensemble(ensemble_args)
    fields = _check_policy(policy_args, args, len(ensemble_args.members or ()))
    peft_config = _encoder_lora(policy_args)
    train_dataset, eval_dataset = load_datasets(task_args)
    funcs = load_rewards(rewards)
    set_seed(args.seed)
    ensemble = EnsembleForCausalLM.from_members(
        [embedded_folder(source, "members") for source in ensemble_args.members or []],
        policy=policy_args.policy,
        policy_revision=policy_args.policy_revision,
        dtype=ensemble_args.dtype,
        device_map=ensemble_args.device_map,
        revisions=ensemble_args.given_revisions,
        **ensemble_args.options,
    )
    if policy_args.policy is None:
        ensemble.set_policy(_new_policy(ensemble, policy_args, fields))
    return RLAETrainer(ensemble, funcs, args, train_dataset, eval_dataset, peft_config=peft_config)


def _check_ensemble(given: EnsembleArguments) -> None:
    try:
        EnsembleConfig(**given.options)
    except StrictDataclassFieldValidationError as error:
        raise ConfigError(f"the ensemble: {error}") from error
    members, revisions = given.members or [], given.revisions
    if revisions is not None and len(revisions) != len(members):
        raise ConfigError(f"revisions has {len(revisions)} entries for {len(members)} members; give one per member")


def _check_policy(given: PolicyArguments, args: RLAEConfig, num_members: int) -> dict[str, Any]:
    """The fields of a new policy, after all checks that need no model."""
    if given.policy is not None:
        if "/" not in given.policy and given.policy in policies:
            raise ConfigError(
                f"policy={given.policy!r} has no parameters that could be trained; give the folder or Hub id of a "
                "learned policy, or leave it out for a new one"
            )
        return {}
    fields = {"actor": objectives[args.objective].actors[0], **given.config_fields}
    check_choice(f"objective={args.objective!r} with actor", fields["actor"], objectives[args.objective].actors)
    try:
        PolicyConfig(num_members=num_members, span_length=args.span_length, **fields)
    except StrictDataclassFieldValidationError as error:
        raise ConfigError(f"the policy: {error}") from error
    return fields


def _new_policy(ensemble: EnsembleForCausalLM, given: PolicyArguments, fields: dict[str, Any]) -> PolicyModel:
    if given.encoder is None:
        return PolicyModel(PolicyConfig.for_members(ensemble.members, **fields))
    return PolicyModel.from_encoder(given.encoder, ensemble.members, revision=given.encoder_revision, **fields)


def _encoder_lora(given: PolicyArguments) -> LoraConfig | None:
    if not given.use_peft:
        return None
    return LoraConfig(
        r=given.lora_r,
        lora_alpha=given.lora_alpha,
        lora_dropout=given.lora_dropout,
        target_modules=given.lora_target_modules or "all-linear",
    )


def _cory_trainer(model_args: CoryRunArguments, task_args: TaskArguments, args: Any) -> Any:
    rewards = check_rewards(task_args)
    peft_config = get_peft_config(model_args)
    check_adapter(peft_config)
    train_dataset, eval_dataset = load_datasets(task_args)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    return _CORY_TRAINERS[model_args.algorithm](
        embedded_folder(str(model_args.model_name_or_path), "members"),
        load_rewards(rewards),
        args,
        train_dataset,
        eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=peft_config,
    )
