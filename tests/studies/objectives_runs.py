"""Trainings of the study of several objectives: sums, normalised sums and constraints, and pairwise rewards."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback

from hf_rlae.cli.demo_training import chain_dataset, chain_reward
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.policies import PolicyConfig, PolicyModel
from hf_rlae.rewards import pairwise_reward
from hf_rlae.tasks.chains import FORMS, LARGEST, OPERATORS, Question, answer_of, draw_step
from hf_rlae.trainers import CoryConfig, CoryTrainer, RLAEConfig, RLAETrainer
from hf_rlae.zoo import load_demo_member, load_demo_members
from hf_rlae.zoo.solving import complete
from tests.studies.cory_runs import OBSERVER_TEMPLATE
from tests.studies.cory_watch import sample_with_kls
from tests.studies.pair_classifier import trained_judge

RLAE, CORY = "RLAE", "CORY"
FAMILIES = (RLAE, CORY)

MEMBER, OPERATOR = "subtraction-bytes", "-"
"""The embedded member that CORY's agents share, and the questions that it is asked."""

TRAIN_SEED, TEST_SEED = 5, 3
_TOKENS = 40
_AGENT_TOKENS = 24


def right(completions: Sequence[str], answer: Sequence[int], **columns: Any) -> list[float]:
    """1 for the right answer, else 0."""
    return chain_reward(completions, answer)


def small(completions: Sequence[str], **columns: Any) -> list[float]:
    """1 for the answer 0, 0 for the answer 99 or none: it is against most right sums and products."""
    answers = [answer_of(text) for text in completions]
    return [0.0 if value is None else 1 - min(value, LARGEST) / LARGEST for value in answers]


def steps(count: int, seed: int, is_held_out: bool, operators: Sequence[str] = OPERATORS) -> list[Question]:
    """Single steps as they occur in chains, drawn independently, so that some occur more than once."""
    rng, found = random.Random(seed), list[Question]()
    while len(found) < count:
        question = draw_step(rng, rng.choice(FORMS))
        if question.is_held_out == is_held_out and question.operators[0] in operators:
            found.append(question)
    return found


@dataclass(frozen=True)
class Combination:
    """How two rewards become one.

    Attributes:
        weights (`tuple[float, float]`, *optional*): of `right` and `small`; `None` with a constraint.
        is_normalized (`bool`): each reward is normalised before the sum.
        constraint (`tuple[str, float]`, *optional*): the name of a reward, and its least mean.
    """

    weights: tuple[float, float] | None = None
    is_normalized: bool = False
    constraint: tuple[str, float] | None = None

    @property
    def name(self) -> str:
        """As in tables."""
        if self.constraint is not None:
            return "{} at least {:g}".format(*self.constraint)
        assert self.weights is not None
        return "{:g} right + {:g} small".format(*self.weights) + ", normalised" * self.is_normalized

    def options(self, rate: float) -> dict[str, Any]:
        """Arguments of a trainer's configuration; `rate` is that of the multiplier."""
        if self.constraint is not None:
            return {"reward_constraints": dict([self.constraint]), "multiplier_learning_rate": rate}
        aggregation = "normalize_then_sum" if self.is_normalized else "sum_then_normalize"
        return {"reward_weights": list(self.weights or ()), "multi_objective_aggregation": aggregation}


def combinations(family: str) -> list[Combination]:
    """What the study compares."""
    shares = (0.0, 0.25, 0.5, 0.75, 1.0) if family == RLAE else (0.0, 0.5, 0.75, 1.0)
    inner = (0.25, 0.4, 0.5) if family == RLAE else (0.25, 0.5)
    bounds = (("small", 0.8), ("small", 0.85), ("small", 0.9), ("right", 0.7))
    if family == CORY:
        bounds = (("small", 0.9), ("small", 0.95))
    return [
        *(Combination((1 - share, share)) for share in shares),
        *(Combination((1 - share, share), is_normalized=True) for share in inner),
        *(Combination(constraint=bound) for bound in bounds),
    ]


@dataclass(frozen=True)
class FrontierRun:
    """One training with two rewards.

    Attributes:
        family (`str`): `RLAE` or `CORY`.
        combination (`Combination`): of the rewards.
        seed (`int`): of the policy or adapters, and all texts.
    """

    family: str
    combination: Combination
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.family}-{_slug(self.combination.name)}-seed{self.seed}"

    def training(self, settings: dict[str, Any]) -> Combination:
        """See `parallel_runs.do_runs`."""
        return self.combination

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains and answers held-out questions.

        Returns:
            `dict`: `right` and `small` (means, for CORY over agents, each alone), `trained` (both means in the last
            third of the rollouts, over all agents), `multiplier` (the last one, `None` without a constraint), `reward`.
        """
        options = self.combination.options(settings["multiplier_rate"])
        train = train_policy if self.family == RLAE else train_agents
        found, history = train([right, small], options, self.seed, settings)
        last = history[-max(1, len(history) // 3) :]
        agents = 1 if self.family == RLAE else 2
        trained = {
            each: sum(log[f"rewards/{each}/mean"] for log in last) / len(last) / agents for each in ("right", "small")
        }
        multipliers = [value for name, value in last[-1].items() if name.startswith("constraints/")]
        return {
            "family": self.family,
            "combination": self.combination.name,
            "seed": self.seed,
            **found,
            "trained": trained,
            "multiplier": multipliers[0] if multipliers else None,
            "reward": found["right"],
        }


@dataclass(frozen=True)
class PairRun:
    """One policy that learns from comparisons, or from right answers themselves.

    Attributes:
        judge (`str`): of `JUDGES`.
        seed (`int`): of the policy, all texts, and the classifier.
    """

    judge: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{_slug(self.judge)}-seed{self.seed}"

    def training(self, settings: dict[str, Any]) -> None:
        """Nothing beyond its name and the study's settings."""

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains and answers held-out questions: `right` and `small`, and for a classifier its `judge_accuracy`."""
        found: dict[str, Any] = {}
        if self.judge == CLASSIFIER:
            model, tokenizer, found["judge_accuracy"] = trained_judge(
                load_demo_members("shared"),
                steps(settings["judge_questions"], TRAIN_SEED, False),
                steps(settings["questions"], TEST_SEED, True),
                self.seed,
                settings["judge_epochs"],
            )
            reward = pairwise_reward(model, tokenizer, batch_size=64)
        else:
            reward = JUDGES[self.judge]
        if reward is None:
            settings = {**settings, "rollouts": 0}
        scores, _ = train_policy(reward or right, {}, self.seed, settings)
        return {"judge": self.judge, "seed": self.seed, **found, **scores, "reward": scores["right"]}


def knows_the_answer(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str], answer: Sequence[int], **columns: Any
) -> list[float]:
    """A judge that prefers a right answer to a wrong one."""
    ahead, behind = chain_reward(first, answer), chain_reward(second, answer)
    return [0.5 + (one - other) / 2 for one, other in zip(ahead, behind, strict=True)]


CLASSIFIER = "pairs, judged by a classifier"
JUDGES: dict[str, Callable[..., Any] | None] = {
    "without training": None,
    "right answers": right,
    "pairs, judged by right answers": pairwise_reward(knows_the_answer),
    "pairs, judged so with one opponent": pairwise_reward(knows_the_answer, num_opponents=1),
    CLASSIFIER: None,
}
"""What a policy learns from."""


def _common(folder: str, settings: dict[str, Any], family: str, seed: int) -> dict[str, Any]:
    texts, updates = settings["texts"][family], settings["updates"][family]
    return {
        "output_dir": folder,
        "num_generations": settings["generations"],
        "per_device_train_batch_size": texts // updates,
        "generation_batch_size": texts,
        "num_iterations": settings["iterations"][family],
        "max_steps": settings["rollouts"] * updates * settings["iterations"][family],
        "logging_steps": updates * settings["iterations"][family],
        "learning_rate": settings["rates"][family],
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def train_policy(
    rewards: Any, options: dict[str, Any], seed: int, settings: dict[str, Any]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Trains the policy of an ensemble by `mixture`; returns the means on held-out questions, and the logs."""
    torch.manual_seed(seed)
    members = load_demo_members("shared")
    policy = PolicyModel(PolicyConfig.for_members(members, span_length=1, hidden_size=64))
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=1)
    history: list[dict[str, Any]] = []
    if settings["rollouts"]:
        prompts = settings["rollouts"] * settings["texts"][RLAE] // settings["generations"]
        with tempfile.TemporaryDirectory() as folder:
            args = RLAEConfig(
                **_common(folder, settings, RLAE, seed),
                objective="mixture",
                max_completion_length=_TOKENS,
                shuffle_dataset=False,
                **options,
            )
            trainer = RLAETrainer(ensemble, rewards, args, chain_dataset(steps(prompts, TRAIN_SEED, False)))
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        history = [log for log in trainer.state.log_history if "reward" in log]
    policy.eval()
    questions = steps(settings["questions"], TEST_SEED, True)
    texts = complete(ensemble, ensemble.tokenizer, [question.prompt for question in questions], batch_size=200)
    return _means(texts, questions), history


def train_agents(
    rewards: Any, options: dict[str, Any], seed: int, settings: dict[str, Any]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Trains two agents by `CoryTrainer`; returns the means of both on held-out questions, each alone, and the logs."""
    torch.manual_seed(seed)
    member = load_demo_member(MEMBER)
    dataset = chain_dataset(steps(400, TRAIN_SEED, False, (OPERATOR,)))
    questions = steps(settings["questions"], TEST_SEED, True, (OPERATOR,))
    rank = settings["rank"]
    with tempfile.TemporaryDirectory() as folder:
        args = CoryConfig(
            **_common(folder, settings, CORY, seed),
            beta=settings["beta"],
            temperature=1.0,
            top_k=0,
            max_completion_length=_AGENT_TOKENS,
            role_exchange_steps=2 * settings["updates"][CORY],
            observer_template=OBSERVER_TEMPLATE,
            activation_checkpointing=False,
            **options,
        )
        trainer = CoryTrainer(
            member.model,
            rewards,
            args=args,
            train_dataset=dataset,
            processing_class=member.tokenizer,
            peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.model.eval()
        found = []
        for agent in trainer.agents.names:
            with trainer.alone(agent), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                prompts = [question.prompt for question in questions]
                texts = sample_with_kls(trainer.model, trainer.processing_class, prompts, _AGENT_TOKENS)
            found.append({**_means(texts.completions, questions), "kl": texts.means()["kl"]})
    means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    return means, [log for log in trainer.state.log_history if "reward" in log]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def _means(texts: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    scores = {"right": right(texts, [question.answer for question in questions]), "small": small(texts)}
    return {name: round(sum(values) / len(values), 4) for name, values in scores.items()}
