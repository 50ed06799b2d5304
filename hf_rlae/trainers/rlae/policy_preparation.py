"""What `RLAETrainer` changes in an ensemble before training, after all checks."""

from __future__ import annotations

import copy
from typing import Any

from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D
from trl.trainer.utils import disable_dropout_in_model

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.policy_fit import describe_members
from hf_rlae.policies import PolicyModel
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig


def prepare_policy(ensemble: EnsembleForCausalLM, args: RLAEConfig, peft_config: Any) -> Any:
    """Makes an ensemble and its policy ready for training.

    Afterwards the ensemble and the policy have the `span_length` of `args`, and the policy its `encoder_batch_size`,
    the ensemble's members in its config, LoRA on its encoder if there is a `peft_config`, and no dropout with
    `disable_dropout`.

    Args:
        ensemble (`EnsembleForCausalLM`): with a [`PolicyModel`]; changed in place.
        args (`RLAEConfig`): the configuration.
        peft_config (`peft.PeftConfig`, *optional*): not changed.

    Returns:
        `PolicyModel` or `PeftModel`: the policy to train.
    """
    if args.span_length is not None:
        ensemble.config.span_length = args.span_length
    policy: Any = ensemble.policy
    policy.encoder_batch_size = args.encoder_batch_size
    policy.config.members = describe_members(ensemble)
    if peft_config is not None:
        policy = wrap_policy(ensemble, peft_config)
    policy.config.span_length = ensemble.config.span_length_of_policy
    if args.disable_dropout:
        disable_dropout_in_model(policy)
    return policy


def wrap_policy(ensemble: EnsembleForCausalLM, peft_config: Any) -> Any:
    """Puts LoRA on the encoder of an ensemble's policy; returns the wrapped policy."""
    policy: Any = ensemble.policy
    adapter = copy.deepcopy(peft_config)  # peft changes the configuration that it is given
    adapter.modules_to_save = sorted({*(adapter.modules_to_save or ()), "heads"})
    targets = adapter.target_modules
    if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
        adapter.target_modules = _linear_layers(policy)
    wrapped = get_peft_model(policy, adapter)
    ensemble.set_policy(wrapped)
    return wrapped


def _linear_layers(policy: PolicyModel) -> list[str]:
    """The names of the encoder's linear layers, without its pooler, whose output the policy does not use."""
    return [
        name
        for name, module in policy.named_modules()
        if name.startswith("encoder.") and "pooler" not in name and isinstance(module, nn.Linear | Conv1D)
    ]
