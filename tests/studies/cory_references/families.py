"""The families that the study compares: a trainer, and what differs from the study's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from hf_rlae.trainers import (
    CoryConfig,
    CoryPPOConfig,
    CoryPPOTrainer,
    CoryTrainer,
    TokenPPOConfig,
    TokenPPOTrainer,
)
from hf_rlae.trainers.cory.configuration_cory import CoryArguments
from hf_rlae.trainers.cory.roles import Role, roles
from hf_rlae.trainers.defaults import default_bf16
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOArguments
from tests.studies.cory_references.base import (
    ANSWER_TOKENS,
    NUM_TRAINING,
    build_tokenizer,
    questions,
    read_references,
    right_answers,
    split_questions,
)

PPO, GRPO = "PPO", "GRPO"

ADVISER = "study-critic"
"""A critic for this base, which follows no instruction: its answer to the question is what the next agent reads.

It has no share of the reward: it learns from whether the next agent is right. A verifier's template would be the
observer's.
"""
roles.register(ADVISER)(Role(read_references, share=0.0))


@dataclass(frozen=True)
class Family:
    """What is trained.

    Attributes:
        trainer (`type`), config (`type`): its classes.
        reference (`str`): the single agent that it is compared with, `PPO` or `GRPO`.
        options (`Mapping`): arguments of the configuration, beside those of the study.
        texts (`int`): times as many texts in a rollout as the study says.
    """

    trainer: type
    config: type
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    texts: int = 1

    @property
    def is_ppo(self) -> bool:
        """Whether it goes through a rollout several times, with a KL coefficient in the reward."""
        return issubclass(self.config, TokenPPOArguments)

    @property
    def is_cory(self) -> bool:
        """Whether it has several agents."""
        return issubclass(self.config, CoryArguments)

    @property
    def agents(self) -> int:
        """Their number."""
        return len(self.options.get("roles", ("pioneer", "observer"))) if self.is_cory else 1

    @property
    def written(self) -> int:
        """Texts that are written for each text an agent: Shapley values need those of all smaller teams, too."""
        return 2**self.agents - 1 if self.options.get("credit") == "shapley" else self.agents

    def passes(self, settings: Mapping[str, Any]) -> int:
        """Times that it goes through a rollout."""
        return int(settings["ppo_iterations"]) if self.is_ppo else 1

    def steps(self, settings: Mapping[str, Any]) -> int:
        """Optimizer steps that are made of a rollout."""
        return int(settings["updates"]) * self.passes(settings)


def _cory_ppo(**options: Any) -> Family:
    return Family(CoryPPOTrainer, CoryPPOConfig, PPO, options)


def _cory_grpo(**options: Any) -> Family:
    return Family(CoryTrainer, CoryConfig, GRPO, options)


FAMILIES: dict[str, Family] = {
    PPO: Family(TokenPPOTrainer, TokenPPOConfig, PPO),
    "CORY-PPO team": _cory_ppo(credit="team"),
    "CORY-PPO own": _cory_ppo(credit="own"),
    GRPO: Family(GRPOTrainer, GRPOConfig, GRPO),
    "CORY-GRPO team": _cory_grpo(credit="team"),
    "CORY-GRPO own": _cory_grpo(credit="own"),
    "PPO, twice the texts": Family(TokenPPOTrainer, TokenPPOConfig, PPO, texts=2),
    "GRPO, twice the texts": Family(GRPOTrainer, GRPOConfig, GRPO, texts=2),
    "CORY-GRPO shared reference": _cory_grpo(credit="own", observer_groups="shared_reference"),
    "CORY-GRPO shared rollouts": _cory_grpo(credit="own", shared_rollouts=True),
    "CORY-GRPO normalised team": _cory_grpo(team_normalization=True, scale_rewards="none"),
    "CORY-GRPO difference": _cory_grpo(credit="difference"),
    "CORY-GRPO Shapley": _cory_grpo(credit="shapley"),
    "CORY-PPO difference": _cory_ppo(credit="difference"),
    "CORY-PPO Shapley": _cory_ppo(credit="shapley"),
    "PPO, full KL": Family(TokenPPOTrainer, TokenPPOConfig, PPO, {"kl_penalty": "full"}),
    "CORY-PPO own, full KL": _cory_ppo(credit="own", kl_penalty="full"),
    "CORY-PPO own, three agents": _cory_ppo(credit="own", roles=["pioneer", "observer", "observer"]),
    "CORY-GRPO own, three agents": _cory_grpo(credit="own", roles=["pioneer", "observer", "observer"]),
    "CORY-PPO own, critic": _cory_ppo(credit="own", roles=["pioneer", ADVISER, "observer"]),
    "CORY-GRPO own, critic": _cory_grpo(credit="own", roles=["pioneer", ADVISER, "observer"]),
}
"""By name, in the order in which they are trained. A new family is one entry."""


def trainer_of(
    family: Family, model: Any, rate: float, seed: int, rollouts: int, settings: Mapping[str, Any], folder: str
) -> Any:
    """A trainer of a family, which prints nothing and saves nothing.

    All families have the same adapters, learning rates, prompts and texts an agent (but for `Family.texts`).

    Args:
        family ([`Family`]): what is trained.
        model (`PreTrainedModel`): the base, which gets adapters.
        rate (`float`), seed (`int`), rollouts (`int`): of the run.
        settings (`Mapping`): of the study.
        folder (`str`): where the trainer could write.
    """
    texts, steps = family.texts * settings["texts"], family.steps(settings)
    options: dict[str, Any] = {
        "output_dir": folder,
        "num_generations": settings["generations"],
        "per_device_train_batch_size": texts // settings["updates"],
        "generation_batch_size": texts,
        "num_iterations": family.passes(settings),
        "max_completion_length": ANSWER_TOKENS,
        "temperature": 1.0,
        "top_k": 0,
        "max_steps": rollouts * steps,
        "learning_rate": rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": settings["warmup"] * steps,
        "activation_checkpointing": False,
        "bf16": default_bf16(False, False),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }
    options |= {"kl_coef": settings["kl_coef"], "kl_target": None} if family.is_ppo else {"beta": settings["beta"]}
    if family.is_cory:
        options |= {"role_exchange_steps": settings["exchange"] * steps, "observer_template": read_references}
    trainer = family.trainer(
        model,
        right_answers,
        args=family.config(**{**options, **family.options}),
        train_dataset=questions(split_questions(settings["base"]["seed"])[0][:NUM_TRAINING]),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(
            r=settings["rank"],
            lora_alpha=2 * settings["rank"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
