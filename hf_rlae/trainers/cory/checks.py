"""Checks of the arguments of a CORY trainer, before anything is loaded or run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_rlae.errors import ConfigError
from hf_rlae.hub_ids import is_hub_id
from hf_rlae.members.member import context_length_of
from hf_rlae.trainers.adapter_checks import LORA_HINT, check_adapter
from hf_rlae.trainers.cory.configuration_cory import CoryArguments
from hf_rlae.trainers.cory.prompts import fills_text
from hf_rlae.trainers.prompt_datasets import (
    check_chat_template,
    check_prompts,
    named_datasets,
    prompts_by_dataset,
)
from hf_rlae.trainers.ratio_bias import warn_of_biased_ratios
from hf_rlae.trainers.trl_generation import check_generation

logger = logging.getLogger(__name__)

REWARD_COLUMNS = (
    "role",
    "agent",
    "previous_completions",
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
)
"""What reward functions receive besides the dataset's columns."""

_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")


def check_arguments(args: Any, model: Any, peft_config: Any, optimizers: Any, others: Mapping[str, Any]) -> None:
    """Raises for arguments of a trainer that do not fit.

    Args:
        args: the configuration.
        model (`str` or `PreTrainedModel`): a Hub id, a folder or a model.
        peft_config: of the agents' adapters.
        optimizers (`tuple`): as in transformers.
        others (`Mapping`): all other arguments by name.

    Raises:
        ConfigError: names the argument.
    """
    if not isinstance(args, CoryArguments):
        raise ConfigError(
            f"args is a {type(args).__name__}, which has no fields of CORY; give a CoryConfig, a CoryRLOOConfig, or "
            "your own class: `@dataclass class MyConfig(CoryArguments, YourTrainerConfig)`"
        )
    _check_model(model)
    check_adapter(peft_config)
    if any(part is not None for part in optimizers or ()):
        raise ConfigError(
            "optimizers: an optimizer built before the trainer does not have the parameters of the agents; choose it "
            "with args.optim, and the schedule with args.lr_scheduler_type"
        )
    for name in ("tools", "rollout_func", "environment_factory"):
        if others.get(name):
            raise ConfigError(f"{name} was given, but CORY trainers do not support it; leave it out")
    settings: Any = args
    if settings.push_to_hub:
        check_published_base(
            settings.base_model_id or (model if isinstance(model, str) else model.config._name_or_path)
        )
    _check_processes(settings)
    check_generation(settings)
    fields = {name: getattr(settings, name) for name in _SAMPLING}
    warn_of_biased_ratios({**fields, **(settings.generation_kwargs or {})}, settings.temperature)


def _check_model(model: Any) -> None:
    if isinstance(model, PeftModel):
        raise ConfigError(f"model has adapters already ({', '.join(model.peft_config)}); {LORA_HINT}")
    if isinstance(model, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError("model has layers of adapters in it from an earlier trainer; load it again, or give its name")


def check_published_base(base: str | None) -> None:
    """Raises if nobody else could load adapters that are published with this base model.

    Args:
        base (`str`, *optional*): the base model's name in `adapter_config.json`.

    Raises:
        ConfigError: it is a folder, or missing.
    """
    if not base or not is_hub_id(base):
        raise ConfigError(
            f"the published adapters would refer to the base model {base!r}, which is not a repository on the Hub, so "
            "nobody could load them; set base_model_id='owner/name' in the configuration, or load the base model by "
            "its Hub id"
        )


def _check_processes(args: Any) -> None:
    for plugin in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate was launched with {plugin}, which is not tested with several adapters; launch with "
                "`--multi_gpu` (DDP)"
            )
    if args.world_size > 1 and (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ConfigError(
            "gradient_checkpointing_kwargs: with use_reentrant=True and several processes (DDP), inactive adapters "
            "cannot be left out of the backward pass; leave it out"
        )


def check_cory_datasets(args: Any, train_dataset: Any, eval_dataset: Any) -> dict[str, list[Any]]:
    """Raises for datasets that cannot be used; returns the prompts of each dataset by its name.

    Raises:
        ConfigError: a dataset that `check_prompts` refuses, one with a column that the trainer adds for reward
            functions, or with messages that the template cannot fill; or a `metric_for_best_model` that does
            not say which of several datasets it belongs to.
    """
    found = check_prompts(args, train_dataset, eval_dataset)
    if isinstance(eval_dataset, Mapping):
        _check_best_metric(args, list(eval_dataset))
    _check_columns(args, named_datasets(train_dataset, eval_dataset), found)
    return found


def check_evaluated(args: Any, eval_dataset: Any) -> None:
    """Raises as `check_cory_datasets` does, for an evaluated dataset or a mapping of names to these."""
    _check_columns(args, named_datasets(eval_dataset=eval_dataset), prompts_by_dataset(eval_dataset=eval_dataset))


def _check_columns(args: Any, datasets: Mapping[str, Any], found: Mapping[str, list[Any]]) -> None:
    for name, dataset in datasets.items():
        prompts, columns = found[name], dataset.column_names
        taken = [column for column in REWARD_COLUMNS if column in columns]
        if taken:
            raise ConfigError(
                f"{name} has the column(s) {', '.join(taken)}, which the trainer adds for reward functions; rename them"
            )
        if isinstance(prompts[0], list):
            _check_messages(args, name, prompts)


def _check_messages(args: Any, name: str, prompts: list[list[Any]]) -> None:
    is_filled = any(fills_text(args.role(name).template) for name in args.role_names)
    for row, messages in enumerate(prompts):
        if not messages:
            raise ConfigError(f"{name}: the prompt of row {row} has no messages; remove the row")
        if is_filled and not isinstance(messages[-1].get("content"), str):
            raise ConfigError(
                f"{name}: the last message of row {row} has no text as its content, which the observers' template "
                "fills; give text, or an observer_template that is a function"
            )


def _check_best_metric(args: Any, names: list[str]) -> None:
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return
    if not metric.removeprefix("eval_").startswith(tuple(f"{name}_" for name in names)):
        known = ", ".join(repr(f"{name}_reward") for name in names)
        raise ConfigError(
            f"metric_for_best_model={metric!r}: eval_dataset has several datasets; name one of them, as in {known}"
        )


def warn_of_half_precision(model: nn.Module) -> None:
    """Warns of parameters that are trained in half precision, where rounding loses most of their updates."""
    names = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and value.dtype in (torch.float16, torch.bfloat16)
    ]
    if names:
        logger.warning(
            "%d parameters, such as %s, are trained in half precision, where rounding loses small updates; load the "
            "base model in float32 (bf16=True computes in bfloat16), or leave modules_to_save out",
            len(names),
            names[0],
        )


def check_tokenizer(tokenizer: Any, prompts_by_name: Mapping[str, list[Any]]) -> None:
    """Raises if the tokenizer has no eos token, cannot render messages, or turns a prompt into no token at all.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        prompts_by_name (`Mapping[str, list]`): the prompts of each dataset.

    Raises:
        ConfigError: says what is missing.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"processing_class is a {type(tokenizer).__name__}; CORY trainers support text only: give a tokenizer"
        )
    if tokenizer.eos_token is None:
        raise ConfigError("processing_class has no eos token, so no completion could end; set `tokenizer.eos_token`")
    for name, prompts in prompts_by_name.items():
        check_chat_template(name, prompts, tokenizer, "processing_class")
        if "" in prompts and not tokenizer("")["input_ids"]:
            raise ConfigError(f"{name}: the prompt of row {prompts.index('')} is empty; remove the row")


def observer_room(args: Any, config: Any) -> int | None:
    """The maximum number of tokens of an observer's prompt.

    Args:
        args ([`CoryArguments`]): `max_observer_prompt_length` and `max_completion_length`.
        config (`PreTrainedConfig`): of the model.

    Returns:
        `int` or `None`: `None` if neither the model nor the user sets a bound.

    Raises:
        ConfigError: a completion alone fills the model's context.
    """
    context = context_length_of(config.get_text_config())
    if context is None:
        return args.max_observer_prompt_length  # type: ignore[no-any-return]
    room = context - int(args.max_completion_length)
    if room < 1:
        raise ConfigError(
            f"max_completion_length={args.max_completion_length} leaves no room for a prompt in the model's context "
            f"of {context} tokens; give a smaller one"
        )
    return min(room, args.max_observer_prompt_length or room)
