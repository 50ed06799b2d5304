"""Small base models, data and runs for tests of CORY trainers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

from hf_rlae.trainers import CoryConfig, CoryTrainer
from tests.support.models import pair
from tests.support.rlae import CHAT_TEMPLATES, data, vowels
from tests.support.tokenizers import byte_level_bpe

OPTIONS: dict[str, Any] = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 6,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "beta": 0.05,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 7,
}
"""Rollouts of 8 completions of 6 tokens, G = 4, with two updates in each of two passes; silent and on the CPU."""


def lora(**fields: Any) -> LoraConfig:
    """A small adapter on all linear layers."""
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **fields})


def base(seed: int = 0, chat: bool = False, **overrides: Any) -> tuple[Any, Any]:
    """A random model and its tokenizer; with `chat` the tokenizer has a template."""
    tokenizer = byte_level_bpe(extra="<chat>") if chat else byte_level_bpe()
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATES[0]
    return pair("llama", seed, tokenizer, **overrides)


def chats(count: int = 6) -> Dataset:
    """Conversations with one message each."""
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in data(count)["prompt"]]})


def trainer_of(
    folder: Any,
    trainer_class: Any = CoryTrainer,
    rewards: Any = vowels,
    train: Dataset | None = None,
    given: tuple[Any, Any] | None = None,
    peft_config: Any = None,
    config_class: Any = None,
    eval_dataset: Any = None,
    callbacks: list[Any] | None = None,
    **options: Any,
) -> Any:
    """A trainer that is ready to train."""
    model, tokenizer = base() if given is None else given
    kind = config_class or getattr(trainer_class, "config_class", CoryConfig)
    return trainer_class(
        model,
        rewards,
        args=kind(str(folder), **{**OPTIONS, **options}),
        train_dataset=data() if train is None else train,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=lora() if peft_config is None else peft_config,
        callbacks=callbacks,
    )


def adapters_of(trainer: Any) -> dict[str, dict[str, torch.Tensor]]:
    """A copy of every agent's parameters, under names that do not depend on the agent."""
    return {
        name: {
            key.replace(f".{trainer.agents.adapters[name]}.", "."): value.detach().clone()
            for key, value in trainer.model.named_parameters()
            if any(value is own for own in trainer.agents.parameters(name))
        }
        for name in trainer.agents.names
    }


def base_of(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of the parameters that belong to no agent."""
    own = {id(parameter) for name in trainer.agents.names for parameter in trainer.agents.parameters(name)}
    return {key: value.detach().clone() for key, value in trainer.model.named_parameters() if id(value) not in own}


def gradients_of(trainer: Any, agent: str) -> list[torch.Tensor]:
    """A copy of an agent's gradients."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.agents.parameters(agent)]


def rollout(trainer: Any, rows: int = 8, group: int = 4) -> dict[str, Any]:
    """One rollout in training mode, as `train` generates it."""
    trainer.model.train()
    inputs = [dict(trainer.train_dataset[index // group]) for index in range(rows)]
    torch.manual_seed(3)
    return trainer._generate_and_score_completions(inputs)


@contextlib.contextmanager
def in_training(trainer: Any) -> Iterator[None]:
    """Sets what `train` sets before the first step."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.activation_checkpointing:
        trainer.model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    trainer.create_optimizer()
    yield
    trainer.model.zero_grad()
