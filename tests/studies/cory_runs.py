"""One training of the study of CORY: which method, on which task, with which numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from hf_rlae.cli.demo_training import chain_dataset, chain_reward
from hf_rlae.errors import ConfigError
from hf_rlae.rewards.sentiment_rule import SentimentReward
from hf_rlae.tasks import load_task
from hf_rlae.tasks.chains import draw_questions
from hf_rlae.trainers import CoryConfig, CoryPPOConfig, CoryPPOTrainer, CoryTrainer
from hf_rlae.trainers.defaults import default_bf16
from hf_rlae.zoo import load_demo_member
from tests.studies.chain_policies import TEST_SEED, TRAIN_SEED
from tests.studies.cory_watch import Watch

SENTIMENT, ARITHMETIC = "sentiment", "arithmetic"
TASKS = (SENTIMENT, ARITHMETIC)

GRPO, GRPO_SAMPLES, GRPO_COMPUTE = "GRPO", "GRPO, twice the samples", "GRPO, equal compute"
CORY, CORY_ALONE, CORY_FIXED = "CORY", "CORY without transfer", "CORY without exchange"
CORY_PPO = "CORY-PPO"
METHODS = (GRPO, GRPO_SAMPLES, GRPO_COMPUTE, CORY, CORY_ALONE, CORY_FIXED, CORY_PPO)

MEMBER, OPERATOR = "subtraction-bytes", "-"
"""The embedded member that learns arithmetic, and of what: single differences, which it knows as parts of chains."""

OBSERVER_TEMPLATE = "{prompt}{answers}\n{prompt}"
"""The observer reads the prompt with the pioneer's answer, then the prompt again: these models follow no request."""

NUM_TRAINING_PROMPTS, PROMPT_WORDS = 1000, 6
NUM_TRAINING_QUESTIONS, ANSWER_TOKENS = 400, 24


@dataclass(frozen=True)
class Sources:
    """Where the sentiment task comes from; nothing of it is kept in results.

    Attributes:
        model (`Path`, *optional*): folder of the base model.
        data (`Path`, *optional*): text file; each line is a story.
        lexicon (`Path`, *optional*): of the reward; the package's own if not given.
    """

    model: Path | None = None
    data: Path | None = None
    lexicon: Path | None = None


@dataclass(frozen=True)
class TaskParts:
    """What a task gives to a trainer.

    Attributes:
        model, tokenizer: the base.
        reward (callable): in TRL's form.
        train (`Dataset`): with the column `prompt`.
        held_out (`Dataset`): the same columns, for evaluations.
        num_tokens (`int`): of an answer, at most.
    """

    model: Any
    tokenizer: Any
    reward: Callable[..., Any]
    train: Dataset
    held_out: Dataset
    num_tokens: int


def task_parts(task: str, sources: Sources, settings: dict[str, Any]) -> TaskParts:
    """Loads the model and the data of a task.

    Args:
        task (`str`): of `TASKS`.
        sources (`Sources`): of the sentiment task.
        settings (`dict`): of the study: `prompts` and `questions` (held out), `tokens` (of a story's continuation).

    Raises:
        ConfigError: the file has fewer openings than are wanted.
    """
    return _sentiment(sources, settings) if task == SENTIMENT else _arithmetic(settings)


def _sentiment(sources: Sources, settings: dict[str, Any]) -> TaskParts:
    if sources.model is None or sources.data is None:
        raise ConfigError("the sentiment task needs --model and --data; give them, or --tasks arithmetic")
    tokenizer = AutoTokenizer.from_pretrained(sources.model)
    model = AutoModelForCausalLM.from_pretrained(sources.model, dtype=torch.float32)
    tables = {}
    for split, count in (("train", NUM_TRAINING_PROMPTS), ("test", settings["prompts"])):
        rows = load_task(
            "story_sentiment",
            split,
            source=sources.data,
            seed=0,
            prompt_format="standard",
            num_words=PROMPT_WORDS,
            limit=4 * count,
        )
        openings = list(dict.fromkeys(rows["prompt"]))[:count]
        if split == "test" and len(openings) < count:
            raise ConfigError(
                f"--data: its split {split!r} has {len(openings)} different openings, {count} are wanted; give a "
                "longer file, or fewer --prompts"
            )
        tables[split] = Dataset.from_dict({"prompt": openings})
    reward = SentimentReward(sources.lexicon)
    return TaskParts(model, tokenizer, reward, tables["train"], tables["test"], settings["tokens"])


def _arithmetic(settings: dict[str, Any]) -> TaskParts:
    member = load_demo_member(MEMBER)
    options: dict[str, Any] = {"num_steps": (1,), "operators": (OPERATOR,), "is_mixed": False}
    train = draw_questions(NUM_TRAINING_QUESTIONS, TRAIN_SEED, splits=("train",), **options)
    held_out = draw_questions(settings["questions"], TEST_SEED, **options)
    tables = chain_dataset(train), chain_dataset(held_out)
    return TaskParts(member.model, member.tokenizer, chain_reward, *tables, ANSWER_TOKENS)


@dataclass(frozen=True)
class Run:
    """One training, watched.

    Attributes:
        task (`str`), method (`str`): of `TASKS` and `METHODS`.
        rate (`float`): learning rate, the same throughout.
        seed (`int`): of the adapters, the order of the prompts, and all texts.
        rollouts (`int`): of the training; each agent learns from each of them in several steps.
        sources (`Sources`): see there.
    """

    task: str
    method: str
    rate: float
    seed: int
    rollouts: int
    sources: Sources = field(default_factory=Sources)

    @property
    def name(self) -> str:
        """The name of its file."""
        method = self.method.replace(",", "").replace(" ", "_")
        return f"{self.task}-{method}-rate{self.rate:g}-seed{self.seed}"

    def training(self, settings: dict[str, Any]) -> None:
        """Nothing beyond its name and the study's settings, which results are kept by."""

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains, and watches every agent alone.

        Returns:
            `dict`: what tells the run apart; `curves` and `samples` by agent, see [`Watch`]; `training_seconds` (CPU,
            without evaluations); and `reward`, the last one, as the mean over agents.
        """
        watch = train(self, settings)
        last = [curve[-1][1] for curve in watch.curves.values()]
        return {
            "task": self.task,
            "method": self.method,
            "rate": self.rate,
            "seed": self.seed,
            "rollouts": self.rollouts,
            "steps": self.rollouts * steps_a_rollout(self.method, settings),
            "curves": watch.curves,
            "prompts": watch.prompts[: watch.num_samples],
            "base_samples": watch.base_samples,
            "samples": watch.samples,
            "training_seconds": round(watch.training_seconds, 2),
            "evaluation_seconds": round(watch.evaluation_seconds, 2),
            "reward": sum(last) / len(last),
        }


def steps_a_rollout(method: str, settings: dict[str, Any]) -> int:
    """Optimizer steps that are made of a rollout; CORY-PPO goes through it several times, as PPO does."""
    return int(settings["updates"] * _passes(method, settings))


def _passes(method: str, settings: dict[str, Any]) -> int:
    return int(settings["ppo_iterations"]) if method == CORY_PPO else 1


def train(run: Run, settings: dict[str, Any]) -> Watch:
    """Does a run's training; what was watched is returned."""
    torch.manual_seed(run.seed)
    parts = task_parts(run.task, run.sources, settings)
    columns = {name: parts.held_out[name] for name in parts.held_out.column_names if name != "prompt"}
    every = settings["every"] * steps_a_rollout(run.method, settings)
    watch = Watch(list(parts.held_out["prompt"]), columns, parts.reward, every, parts.num_tokens)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(run, parts, settings, folder, [watch])
        watch.trainer = trainer
        trainer.train()
    return watch


def trainer_of(
    run: Run, parts: TaskParts, settings: dict[str, Any], folder: str, callbacks: Sequence[Any] = ()
) -> GRPOTrainer:
    """The trainer of a run, which prints nothing and saves nothing.

    All methods have the same adapters, learning rate, and number of different prompts in a rollout; a rollout has
    `settings["texts"][task]` texts an agent, `settings["generations"]` a prompt, and twice as many of both where the
    method says so.
    """
    factor = 2 if run.method == GRPO_SAMPLES else 1
    texts, steps = factor * settings["texts"][run.task], steps_a_rollout(run.method, settings)
    options: dict[str, Any] = {
        "output_dir": folder,
        "num_generations": factor * settings["generations"],
        "per_device_train_batch_size": texts // settings["updates"],
        "generation_batch_size": texts,
        "num_iterations": _passes(run.method, settings),
        "max_completion_length": parts.num_tokens,
        "temperature": 1.0,
        "top_k": 0,
        "max_steps": run.rollouts * steps,
        "learning_rate": run.rate,
        "lr_scheduler_type": "constant",
        "activation_checkpointing": False,
        "bf16": default_bf16(False, False),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": run.seed,
    }
    kind, config = _kinds(run.method)
    if run.method == CORY_PPO:
        options |= {"kl_coef": settings["kl_coef"], "kl_target": None}
    else:
        options["beta"] = settings["beta"]
    if kind is not GRPOTrainer:
        options |= {
            "role_exchange_steps": 0 if run.method == CORY_FIXED else settings["exchange"] * steps,
            "knowledge_transfer": run.method != CORY_ALONE,
            "observer_template": OBSERVER_TEMPLATE,
        }
    trainer = kind(
        parts.model,
        parts.reward,
        args=config(**options),
        train_dataset=parts.train,
        processing_class=parts.tokenizer,
        peft_config=LoraConfig(
            r=settings["rank"],
            lora_alpha=2 * settings["rank"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _kinds(method: str) -> tuple[Any, Any]:
    if method == CORY_PPO:
        return CoryPPOTrainer, CoryPPOConfig
    return (CoryTrainer, CoryConfig) if method.startswith(CORY) else (GRPOTrainer, GRPOConfig)
