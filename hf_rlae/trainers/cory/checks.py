"""What is wrong with the arguments of a CORY trainer, said before anything is loaded or run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_rlae.errors import ConfigError
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.trainers.cory.configuration_cory import CoryArguments

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
"""What reward functions are given besides the dataset's columns."""

_HALF_PRECISIONS = (torch.float16, torch.bfloat16)
_INITIALISATIONS = (True, False, "gaussian", "orthogonal")
_LORA_HINT = (
    "agents are LoRA adapters on one frozen base: pass peft_config=LoraConfig(r=16, target_modules='all-linear') "
    "of `peft`, and a model without adapters"
)
_REFUSED = {
    "tools": "tools",
    "rollout_func": "a rollout function",
    "environment_factory": "environments",
}
_IMAGES = ("image", "images")


def check_arguments(args: Any, model: Any, peft_config: Any, optimizers: Any, others: Mapping[str, Any]) -> None:
    """Raises for arguments of a trainer that do not fit.

    Args:
        args: the configuration.
        model: a name, a folder or a model.
        peft_config: of the agents' adapters.
        optimizers (`tuple`): as in transformers.
        others (`Mapping`): all other arguments by name.

    Raises:
        ConfigError: names the argument.
    """
    if not isinstance(args, CoryArguments):
        raise ConfigError(
            f"args is a {type(args).__name__}, which has no fields of CORY; give a CoryConfig, a CoryRLOOConfig, or a "
            "class of your own: `@dataclass class MyConfig(CoryArguments, YourTrainerConfig)`"
        )
    if isinstance(model, PeftModel):
        raise ConfigError(f"model has adapters already ({', '.join(model.peft_config)}); {_LORA_HINT}")
    if isinstance(model, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "model has layers of adapters in it, as one that was given to a trainer before; load it anew, or pass its "
            "name"
        )
    check_adapter(peft_config)
    if any(part is not None for part in optimizers or ()):
        raise ConfigError(
            "optimizers: one that is built before the trainer cannot know the agents that the trainer makes; choose it "
            "by args.optim, and the schedule by args.lr_scheduler_type"
        )
    for name, what in _REFUSED.items():
        if others.get(name):
            raise ConfigError(f"{name} was given, but {what} cannot be used with CORY trainers yet; leave it out")
    settings: Any = args
    if settings.push_to_hub:
        name = model if isinstance(model, str) else model.config._name_or_path
        check_published_base(settings.base_model_id or name)
    _check_processes(args)
    _warn_of_processors(args)


def is_published(base: str) -> bool:
    """Whether a model's name can be one of the Hub: of its form, and no path of this machine."""
    return is_repo_id(base) and not os.path.exists(base)


def check_published_base(base: str | None) -> None:
    """Raises where nobody else could load adapters that are published with this base.

    Args:
        base (`str`, *optional*): what stands in `adapter_config.json`.

    Raises:
        ConfigError: it is a folder, or nothing.
    """
    if not base or not is_published(base):
        raise ConfigError(
            f"the adapters would be published with the base model {base!r} in adapter_config.json, which is no "
            "repository on the Hub, so nobody could load them; set base_model_id='owner/name' in the configuration, or "
            "load the base by that name"
        )


def check_adapter(peft_config: Any) -> None:
    """Raises for what is no adapter that leaves the base as it is.

    Raises:
        ConfigError: no LoRA, one for another task, or one that changes the base.
    """
    if not isinstance(peft_config, LoraConfig) or isinstance(peft_config, AdaLoraConfig):
        given = "missing" if peft_config is None else f"a {type(peft_config).__name__}"
        raise ConfigError(f"peft_config is {given}; {_LORA_HINT}")
    if not any(peft_config.init_lora_weights is known or peft_config.init_lora_weights == known
               for known in _INITIALISATIONS):  # fmt: skip
        raise ConfigError(
            f"peft_config: init_lora_weights={peft_config.init_lora_weights!r} changes the base that all agents share, "
            "or needs data; leave it out"
        )
    if peft_config.task_type not in (None, "CAUSAL_LM"):
        raise ConfigError(
            f"peft_config: task_type={peft_config.task_type!r}, but what is trained writes texts; leave it out"
        )
    if peft_config.bias != "none":
        raise ConfigError(
            f"peft_config: bias={peft_config.bias!r} trains biases of the base that all agents share; leave it out"
        )
    if peft_config.layer_replication:
        raise ConfigError(
            "peft_config: layer_replication changes the base that all agents share; replicate its layers before, and "
            "leave it out"
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
            "gradient_checkpointing_kwargs: with use_reentrant=True several processes (DDP) cannot leave out the "
            "adapters that are not active; leave it out"
        )


def _warn_of_processors(args: Any) -> None:
    neutral = {"top_p": (1.0,), "top_k": (0, None), "min_p": (0.0, None), "repetition_penalty": (1.0,)}
    found = [f"{name}={getattr(args, name)}" for name, values in neutral.items() if getattr(args, name) not in values]
    if args.generation_kwargs:
        found.append(f"generation_kwargs={args.generation_kwargs}")
    if found:
        logger.warning(
            "%s: texts are sampled from another distribution than the one whose probabilities are learned from, so "
            "ratios are biased; leave these out unless that is on purpose",
            ", ".join(found),
        )


def check_datasets(args: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Raises for datasets that cannot be learned from.

    Raises:
        ConfigError: no dataset, a streamed one, one without prompts, with images, with a column that reward functions
            get from the trainer, with messages that the template cannot fill, or with too few prompts for a rollout; or
            a `metric_for_best_model` that several datasets have.
    """
    if train_dataset is None:
        raise ConfigError("train_dataset is missing; give a datasets.Dataset with a column `prompt`")
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
        if dataset is None:
            continue
        if not isinstance(dataset, Dataset):
            raise ConfigError(
                f"{name} is a {type(dataset).__name__}; give a datasets.Dataset (streamed ones cannot be resumed to "
                "the bit; `Dataset.from_list(rows)` makes one of rows)"
            )
        columns = dataset.column_names
        if "prompt" not in columns:
            raise ConfigError(
                f"{name} has no column 'prompt' (it has {', '.join(columns)}); rename the column that holds the "
                "prompts, or load the data by `hf_rlae.tasks.load_task`"
            )
        for column in _IMAGES:
            if column in columns:
                raise ConfigError(f"{name} has a column {column!r}, but CORY trainers take text only; remove it")
        taken = [column for column in REWARD_COLUMNS if column in columns]
        if taken:
            raise ConfigError(
                f"{name} has the column(s) {', '.join(taken)}, which reward functions get from the trainer; rename them"
            )
        if not len(dataset):
            raise ConfigError(f"{name} is empty; give at least one example")
        kinds = {type(prompt) for prompt in dataset["prompt"]}
        if kinds not in ({str}, {list}):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ConfigError(f"{name}: prompts must all be strings, or all be lists of messages, found {found}")
        if kinds == {list}:
            _check_messages(args, name, dataset["prompt"])
    if isinstance(eval_dataset, Mapping):
        _check_best_metric(args, list(eval_dataset))
    wanted = args.generation_batch_size // args.num_generations
    if len(train_dataset) < wanted:
        raise ConfigError(
            f"train_dataset has {len(train_dataset)} prompts, but a rollout of {args.generation_batch_size} texts "
            f"needs {wanted} different ones; give more prompts, a larger num_generations ({args.num_generations} now), "
            "or a smaller generation_batch_size"
        )


def _check_messages(args: Any, name: str, prompts: Iterable[list[Any]]) -> None:
    is_filled = args.knowledge_transfer and not callable(args.observer_template)
    for row, messages in enumerate(prompts):
        if not messages:
            raise ConfigError(f"{name}: the prompt of row {row} has no messages; leave the row out")
        if is_filled and not isinstance(messages[-1].get("content"), str):
            raise ConfigError(
                f"{name}: the last message of row {row} has no text as its content, which observers' templates fill; "
                "give text, or an observer_template that is a function"
            )


def _check_best_metric(args: Any, names: Sequence[str]) -> None:
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return
    if not metric.removeprefix("eval_").startswith(tuple(f"{name}_" for name in names)):
        known = ", ".join(repr(f"{name}_reward") for name in names)
        raise ConfigError(
            f"metric_for_best_model={metric!r}: eval_dataset has several datasets; say of which, such as {known}"
        )


def warn_of_half_precision(model: Any) -> None:
    """Warns of parameters that are trained in half precision: most of their updates are lost in rounding."""
    names = [
        name for name, value in model.named_parameters() if value.requires_grad and value.dtype in _HALF_PRECISIONS
    ]
    if names:
        logger.warning(
            "%d parameters, such as %s, are trained in half precision, in which small updates are lost in rounding; "
            "load the base in float32 (bf16=True computes in bfloat16), or leave modules_to_save out",
            len(names),
            names[0],
        )


def check_tokenizer(tokenizer: Any, train_dataset: Any, eval_dataset: Any = None) -> None:
    """Raises where texts cannot be ended, padded or made of messages, and for prompts without any token.

    A tokenizer that has an end-of-text token but no padding gets the former for both, as in TRL.

    Raises:
        ConfigError: says what is missing.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"processing_class is a {type(tokenizer).__name__}; CORY trainers take text only: give a tokenizer"
        )
    if tokenizer.eos_token is None:
        pad = "" if tokenizer.pad_token is not None else " and no pad token"
        raise ConfigError(
            f"processing_class has no eos token{pad}: no text could end; set `tokenizer.eos_token` (and "
            "`tokenizer.pad_token`) to tokens of its vocabulary"
        )
    is_nothing_left = not tokenizer("")["input_ids"]
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
        prompts = [] if dataset is None else dataset["prompt"]
        if len(prompts) and isinstance(prompts[0], list) and not tokenizer.chat_template:
            raise ConfigError(
                f"{name}: prompts are messages, but processing_class has no chat template; set "
                "`tokenizer.chat_template`, or give plain strings"
            )
        if is_nothing_left and "" in prompts:
            raise ConfigError(f"{name}: the prompt of row {list(prompts).index('')} is empty; leave it out")


def observer_room(args: Any, config: Any) -> int | None:
    """How many tokens an observer's prompt may have.

    Args:
        args ([`CoryArguments`]): `max_observer_prompt_length` and `max_completion_length`.
        config (`PreTrainedConfig`): of the model.

    Returns:
        `int` or `None`: `None` where neither the model nor the user sets a bound.

    Raises:
        ConfigError: a completion alone fills the model's context.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not context:
        return args.max_observer_prompt_length  # type: ignore[no-any-return]
    room = int(context) - int(args.max_completion_length)
    if room < 1:
        raise ConfigError(
            f"max_completion_length={args.max_completion_length} leaves no room for a prompt in the model's context "
            f"of {context} tokens; give a smaller one"
        )
    return min(room, args.max_observer_prompt_length or room)
