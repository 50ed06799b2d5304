"""Policies for chains of arithmetic: how they are trained and measured on the embedded specialists."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_rlae.baselines.fixed_weights import best_fixed_weights
from hf_rlae.cli.demo_training import chain_dataset, chain_reward
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.objectives import objectives
from hf_rlae.policies import EntropyPolicy, PerplexityPolicy, PolicyConfig, PolicyModel, PolicyState, StaticPolicy
from hf_rlae.tasks.chains import FORMS, OPERATORS, Question, draw_questions, operator_at
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from hf_rlae.zoo import OraclePolicy, load_demo_member
from hf_rlae.zoo.solving import complete

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 5, 1, 0
ACTORS = {"ppo": "joint", "mappo": "per_member", "mixture": "joint"}


@dataclass(frozen=True)
class PolicyTraining:
    """How a policy is trained for chains; one recipe for all objectives.

    Questions come in stages, the short ones first: whatever is learned on single steps, where a reward says much about
    few tokens, is used on longer chains.

    Attributes:
        objective (`str`): `"ppo"`, `"mappo"` or `"mixture"`.
        advantages (`str`, *optional*): see `RLAEConfig`.
        rollouts (`int`): how many; each writes `texts` texts, `generations` a question.
        texts (`int`), generations (`int`), updates (`int`): texts of a rollout and of a question, and updates made of
            each rollout in each pass.
        learning_rate (`float`): falls to 0 linearly.
        stages (`tuple[tuple[int, float], ...]`): numbers of steps, and for what share of the rollouts they are asked.
        num_questions (`int`, *optional*): how many different questions there are, in all stages together; all are
            different if not given.
        forms (`tuple[str, ...]`): of the questions.
        observation (`str`): `"members"`, `"text"` or `"both"`; of the text a small encoder without pretraining reads
            the newest characters.
        further (`dict`): other fields of `RLAEConfig`, and `policy` (`dict`): of `PolicyConfig`.
    """

    objective: str
    advantages: str | None = None
    rollouts: int = 20
    texts: int = 256
    generations: int = 8
    updates: int = 4
    learning_rate: float = 5e-3
    stages: tuple[tuple[int, float], ...] = ((1, 0.44), (2, 0.32), (3, 0.24))
    num_questions: int | None = None
    forms: tuple[str, ...] = FORMS
    observation: str = "members"
    further: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)

    def trainer_options(self) -> dict[str, Any]:
        """The fields of `RLAEConfig` that are set, without those of a run's length and logs."""
        return {
            "objective": self.objective,
            "num_generations": self.generations,
            "per_device_train_batch_size": self.texts // self.updates,
            "generation_batch_size": self.texts,
            "max_completion_length": 70,
            "learning_rate": self.learning_rate,
            **({} if self.advantages is None else {"advantages": self.advantages}),
            **self.further,
        }


TRAINED = {
    "ppo (gae)": PolicyTraining("ppo", "gae"),
    "ppo (group-relative)": PolicyTraining("ppo", "group_relative"),
    "mappo (gae)": PolicyTraining("mappo", "gae"),
    "mappo (group-relative)": PolicyTraining("mappo", "group_relative"),
    "mixture": PolicyTraining("mixture"),
}
"""How policies are trained, by method: all alike, from as many texts each."""


def beside_defaults(settings: PolicyTraining) -> dict[str, Any]:
    """The settings of a training that differ from the defaults of `RLAEConfig` and `PolicyConfig`, by name."""
    default, chosen = RLAEConfig("."), {}
    for name, value in settings.trainer_options().items():
        known = getattr(default, name)
        if name == "advantages":
            known = objectives[settings.objective].default_advantages
        if value != known and name != "objective":
            chosen[name] = value
    known_policy = PolicyConfig(member_hidden_sizes=[1, 1])
    return chosen | {name: value for name, value in settings.policy.items() if value != getattr(known_policy, name)}


class BlindPolicy(PolicyModel):
    """A policy that sees nothing: it can only learn weights that stay the same."""

    def observe(self, state: PolicyState) -> dict[str, torch.Tensor]:
        """What the policy would see, all zero."""
        return {name: torch.zeros_like(seen) for name, seen in super().observe(state).items()}


def new_policy(
    members: Sequence[Any],
    span_length: int,
    settings: PolicyTraining,
    seed: int,
    kind: type[PolicyModel] = PolicyModel,
) -> PolicyModel:
    """A policy with random heads, and a random encoder if it reads the text."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"actor": ACTORS[settings.objective], "span_length": span_length, **settings.policy}
    if settings.observation == "members":
        return kind(PolicyConfig.for_members(members, **options))
    return kind.from_encoder(_small_encoder(), members, observation=settings.observation, **options)


def _small_encoder() -> tuple[BertModel, Any]:
    """One layer of width 32 with random weights, which reads 16 tokens, and a tokenizer of characters."""
    tokenizer = load_demo_member("addition-characters").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config), tokenizer


def right_answers(ensemble: EnsembleForCausalLM, questions: Sequence[Question]) -> np.ndarray:
    """Which questions are answered right by the likeliest tokens, of shape `(1, questions)`."""
    completions = complete(ensemble, ensemble.tokenizer, [question.prompt for question in questions], batch_size=200)
    right = [question.is_solved_by(text) for question, text in zip(questions, completions, strict=True)]
    return np.array([right], dtype=float)


def as_digits(right: np.ndarray) -> str:
    """Right answers as a string of 0 and 1, for a result's file."""
    return "".join("1" if value else "0" for value in right)


class ShuffledReward:
    """`chain_reward` given to the wrong texts: as many rewards, but they say nothing. A control."""

    __name__ = "shuffled_reward"

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """Rewards in a random order."""
        rewards = chain_reward(completions, **columns)
        self._rng.shuffle(rewards)
        return rewards


def best_weights(members: Sequence[Any], questions: Sequence[Question], resolution: int) -> list[float]:
    """The fixed weights that answer most questions, by a grid search; see `best_fixed_weights`."""
    ensemble = with_policy(members, None, 8)

    def score(weights: Sequence[float]) -> float:
        ensemble.set_policy(StaticPolicy(list(weights)))
        return float(right_answers(ensemble, questions).mean())

    return list(best_fixed_weights(score, len(members), resolution).weights)


def training_questions(settings: PolicyTraining, operators: Sequence[str] = OPERATORS) -> list[Question]:
    """The questions of all rollouts, in their order; none is held out.

    Args:
        settings (`PolicyTraining`): how many, and their stages.
        operators (`Sequence[str]`, defaults to all three): that occur.
    """
    total = settings.rollouts * settings.texts // settings.generations
    questions: list[Question] = []
    for at, (steps, share) in enumerate(settings.stages):
        is_last = at + 1 == len(settings.stages)
        count = total - len(questions) if is_last else round(share * total)
        different = count if settings.num_questions is None else round(settings.num_questions * count / total)
        drawn = draw_questions(
            max(1, min(different, count)),
            TRAIN_SEED,
            num_steps=(steps,),
            forms=settings.forms,
            splits=("train",),
            is_mixed=False,
            operators=operators,
        )
        questions += [drawn[index % len(drawn)] for index in range(count)]
    return questions


def held_out_questions(count: int, split: str = "test", **options: Any) -> list[Question]:
    """Questions whose chains nobody was trained on; those of the two splits have no chain in common.

    Args:
        count (`int`): how many.
        split (`str`, defaults to `"test"`): or `"validation"`, for whatever is chosen.
        options: of `draw_questions`.
    """
    return draw_questions(count, TEST_SEED if split == "test" else VALIDATION_SEED, splits=(split,), **options)


def train_policy(
    members: Sequence[Any],
    span_length: int,
    settings: PolicyTraining,
    seed: int,
    *,
    kind: type[PolicyModel] = PolicyModel,
    reward: Callable[..., list[float]] = chain_reward,
    questions: Sequence[Question] | None = None,
    callbacks: Sequence[Any] = (),
    is_quiet: bool = True,
) -> tuple[PolicyModel, list[float]]:
    """Trains a policy by reinforcement learning.

    Args:
        members: of the ensemble.
        span_length (`int`): tokens per span.
        settings (`PolicyTraining`): how.
        seed (`int`): of the policy and all texts.
        kind (`type[PolicyModel]`): of policy.
        reward (callable): in TRL's form.
        questions (`Sequence[Question]`, *optional*): in the place of `training_questions(settings)`, in this order.
        callbacks: further callbacks of the trainer.
        is_quiet (`bool`, defaults to `True`): whether nothing is printed.

    Returns:
        the policy, and the mean reward of each logged rollout.
    """
    policy = new_policy(members, span_length, settings, seed, kind)
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=span_length)
    if questions is None:
        questions = training_questions(settings)
    options = settings.trainer_options()
    updates = settings.updates * options.get("num_iterations", RLAEConfig.num_iterations)
    with tempfile.TemporaryDirectory() as folder:
        args = RLAEConfig(
            folder,
            **options,
            max_steps=settings.rollouts * updates,
            logging_steps=updates,
            save_strategy="no",
            report_to="none",
            disable_tqdm=is_quiet,
            seed=seed,
            shuffle_dataset=False,
        )
        trainer = RLAETrainer(ensemble, reward, args, chain_dataset(questions), callbacks=list(callbacks))
        if is_quiet:
            from transformers.trainer_callback import PrinterCallback

            trainer.remove_callback(PrinterCallback)
        trainer.train()
    curve = [entry["reward"] for entry in trainer.state.log_history if entry.get("reward") is not None]
    return policy.eval(), curve


class _OracleWatch(OraclePolicy):
    """The oracle, which keeps what a policy sees beside what it answers itself."""

    observes_members = True

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self.policy = policy
        self.pooled_tokens = policy.pooled_tokens
        self.seen: list[dict[str, torch.Tensor]] = []
        self.labels: list[torch.Tensor] = []

    def __call__(self, state: PolicyState) -> torch.Tensor:
        kept = [row for row, text in enumerate(state.text) if operator_at(text) is not None]
        if kept:
            rows = torch.tensor(kept)
            self.seen.append({name: tensor[rows] for name, tensor in self.policy.observe(state).items()})
            self.labels.append(torch.tensor([OPERATORS.index(str(operator_at(state.text[row]))) for row in kept]))
        return super().__call__(state)


def supervise_policy(
    members: Sequence[Any], span_length: int, settings: PolicyTraining, seed: int, epochs: int = 20
) -> PolicyModel:
    """A policy that learns the oracle's labels from texts which the oracle wrote: how much of it can be seen."""
    policy = new_policy(members, span_length, settings, seed)
    watch = _OracleWatch(policy)
    ensemble = EnsembleForCausalLM.from_members(members, watch, span_length=span_length)
    questions = training_questions(settings)
    complete(ensemble, ensemble.tokenizer, [question.prompt for question in questions], batch_size=200)
    seen = {name: tensor.clone() for name, tensor in policy.stack(watch.seen).items()}
    labels = torch.cat(watch.labels)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=order).split(256):
            output = policy({name: tensor[rows] for name, tensor in seen.items()}, sample=False)
            loss = nn.functional.nll_loss(output.weights.clamp(min=1e-9).log(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy.eval()


def with_policy(members: Sequence[Any], policy: Any, span_length: int, **settings: Any) -> EnsembleForCausalLM:
    """The ensemble that is measured; `settings` are other fields of `EnsembleConfig`."""
    return EnsembleForCausalLM.from_members(members, policy, span_length=span_length, **settings)


FREE_POLICIES: dict[str, Callable[[int], Any]] = {
    "uniform weights": lambda members: StaticPolicy([1 / members] * members),
    "PerplexityPolicy": lambda members: PerplexityPolicy(),
    "EntropyPolicy": lambda members: EntropyPolicy(),
    "oracle switching": lambda members: OraclePolicy(OPERATORS[:members]),
}
"""Policies that are not trained, by the name in the tables; called with the number of members."""


def replaced(settings: PolicyTraining, **changes: Any) -> PolicyTraining:
    """The settings with some changed."""
    return replace(settings, **changes)
