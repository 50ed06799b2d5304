"""Policies that read the text and decide which members run: how they are trained, and what their texts cost."""

from __future__ import annotations

import math
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.trainer_callback import PrinterCallback

from hf_rlae.baselines.costs import member_tokens
from hf_rlae.cli.demo_training import chain_dataset, chain_reward
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.policies import PolicyModel, PolicyState
from hf_rlae.tasks.chains import OPERATORS, Question, draw_questions
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from hf_rlae.zoo import OraclePolicy
from hf_rlae.zoo.solving import MAX_NEW_TOKENS, complete
from tests.studies import chain_policies as chains

_RESULT = re.compile(r"[=?] .*(=| is )\d*\Z", re.ASCII)
"""A text whose next token is a digit of a result, or the one after it."""

MOST_QUESTIONS = 60
"""Different training questions of one operator and number of steps: there are not many with a valid solution."""


@dataclass(frozen=True)
class RouterTraining:
    """How a policy is trained.

    Attributes:
        prices (`tuple[float, ...]`): of a token of each member, see `RLAEConfig.member_cost`; all 0 for no price.
        supervised_epochs (`int`): passes over labels before reinforcement learning (see `supervise`); 0 for none.
        supervised_questions (`int`): on which the oracle writes texts for that.
        stages (`tuple[tuple[int, float], ...]`): numbers of steps of the questions, and the share of each.
        rollouts (`int`): of reinforcement learning with `ppo`; 0 for none.
        texts (`int`), generations (`int`), updates (`int`), iterations (`int`): as in `PolicyTraining`.
        learning_rate (`float`): falls to 0 linearly.
        advantages (`str`, *optional*): see `RLAEConfig`; group-relative ones are divided by the deviation of a rollout.
    """

    prices: tuple[float, ...]
    supervised_epochs: int
    supervised_questions: int
    stages: tuple[tuple[int, float], ...]
    rollouts: int
    texts: int = 256
    generations: int = 8
    updates: int = 4
    iterations: int = 2
    learning_rate: float = 3e-3
    advantages: str | None = None


class ThriftyOracle(OraclePolicy):
    """The oracle where digits of a result are written; elsewhere, where members only copy, the first member."""

    def __call__(self, state: PolicyState) -> torch.Tensor:
        """Weights of one member per row."""
        weights = super().__call__(state)
        for row, text in enumerate(state.text):
            if not _RESULT.search(text):
                weights[row] = torch.eye(self.num_members)[0]
        return weights


def questions_of(kind: str, count: int, split: str) -> list[Question]:
    """Held-out questions.

    Args:
        kind (`str`): `"mixed"` (two and three steps, at least two operators) or `"one operator"` (one to three steps,
            as many of each operator).
        count (`int`), split (`str`): how many, and of which split.
    """
    if kind == "mixed":
        return chains.held_out_questions(count, split)
    options: dict[str, Any] = {"num_steps": (1, 2, 3), "splits": (split,), "is_mixed": False}
    seed = chains.TEST_SEED if split == "test" else chains.VALIDATION_SEED
    each = -(-count // len(OPERATORS))
    found = [draw_questions(each, seed, operators=(operator,), **options) for operator in OPERATORS]
    return [question for group in zip(*found, strict=True) for question in group][:count]


def training_questions(kind: str, training: RouterTraining, seed: int, total: int) -> list[Question]:
    """At least `total` questions in a random order; none is held out."""
    questions: list[Question] = []
    for steps, share in training.stages:
        options: dict[str, Any] = {"num_steps": (steps,), "splits": ("train",), "is_mixed": False}
        sets = [OPERATORS] if kind == "mixed" else [(operator,) for operator in OPERATORS]
        for operators in sets:
            count = math.ceil(share * total / len(sets))
            different = count if kind == "mixed" else min(count, MOST_QUESTIONS)
            drawn = draw_questions(different, chains.TRAIN_SEED, operators=operators, **options)
            questions += [drawn[index % len(drawn)] for index in range(count)]
    random.Random(seed).shuffle(questions)
    return questions


def train_router(
    members: Sequence[Any], kind: str, training: RouterTraining, seed: int, span_length: int | None
) -> tuple[PolicyModel, list[dict[str, float]]]:
    """Trains a policy that reads the newest 16 characters.

    Args:
        members: of the ensemble.
        kind (`str`): of questions.
        training (`RouterTraining`): how.
        seed (`int`): of the policy and all texts.
        span_length (`int`, *optional*): tokens per decision; `None` picks one member for the text, from the prompt.

    Returns:
        the policy, and `reward`, `member_cost` and `member_tokens/mean` of each rollout.
    """
    policy = chains.new_policy(members, span_length or 1, chains.PolicyTraining("ppo", observation="text"), seed)
    policy.config.span_length = span_length
    if training.supervised_epochs:
        questions = training_questions(kind, training, seed, training.supervised_questions)
        supervise(policy, members, questions, training.supervised_epochs, seed)
    if not training.rollouts:
        return policy.eval(), []
    unit: dict[str, Any] = {"select": "prompt"} if span_length is None else {"span_length": span_length}
    ensemble = EnsembleForCausalLM.from_members(members, policy, **unit)
    steps = training.updates * training.iterations
    with tempfile.TemporaryDirectory() as folder:
        args = RLAEConfig(
            folder,
            objective="ppo",
            member_cost=list(training.prices) if any(training.prices) else None,
            advantages=training.advantages,
            scale_rewards="batch",
            num_generations=training.generations,
            per_device_train_batch_size=training.texts // training.updates,
            generation_batch_size=training.texts,
            num_iterations=training.iterations,
            max_completion_length=70,
            max_steps=training.rollouts * steps,
            learning_rate=training.learning_rate,
            lr_scheduler_type="linear",
            logging_steps=steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            shuffle_dataset=False,
        )
        total = training.rollouts * training.texts // training.generations
        questions = training_questions(kind, training, seed, total)
        trainer = RLAETrainer(ensemble, chain_reward, args, chain_dataset(questions))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    names = ("reward", "member_cost", "member_tokens/mean")
    logs = [{name: log[name] for name in names if name in log} for log in trainer.state.log_history if "reward" in log]
    return policy.eval(), logs


class _Watch(OraclePolicy):
    """The oracle, which keeps what a policy sees, and a label."""

    def __init__(self, policy: PolicyModel, seed: int) -> None:
        super().__init__()
        self.policy = policy
        self.numbers = torch.Generator().manual_seed(seed)
        self.seen: list[dict[str, torch.Tensor]] = []
        self.labels: list[torch.Tensor] = []

    def __call__(self, state: PolicyState) -> torch.Tensor:
        weights = super().__call__(state)
        anyone = torch.randint(self.num_members, (state.batch_size,), generator=self.numbers)
        is_result = torch.tensor([_RESULT.search(text) is not None for text in state.text])
        self.seen.append(self.policy.observe(state))
        self.labels.append(torch.where(is_result, weights.argmax(1), anyone))
        return weights


def supervise(
    policy: PolicyModel, members: Sequence[Any], questions: Sequence[Question], epochs: int, seed: int
) -> None:
    """Teaches a router which member is right where a digit of a result is written; elsewhere it shall draw any member.

    So it starts without a preference where members only copy, which is for prices to decide.
    """
    watch = _Watch(policy, seed)
    ensemble = EnsembleForCausalLM.from_members(members, watch, span_length=1)
    complete(ensemble, ensemble.tokenizer, [question.prompt for question in questions], batch_size=200)
    seen = {name: tensor.clone() for name, tensor in policy.stack(watch.seen).items()}
    labels = torch.cat(watch.labels)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=watch.numbers).split(256):
            output = policy({name: tensor[rows] for name, tensor in seen.items()}, sample=False)
            loss = nn.functional.nll_loss(output.weights.clamp(min=1e-9).log(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def answers(ensemble: EnsembleForCausalLM, questions: Sequence[Question], seed: int | None) -> dict[str, Any]:
    """Answers questions, and counts the tokens for which each member ran.

    Args:
        ensemble (`EnsembleForCausalLM`): the ensemble.
        questions (`Sequence[Question]`): N questions.
        seed (`int`, *optional*): of samples at temperature 1; `None` is greedy decoding.

    Returns:
        `dict`: `right` (a string of N digits) and `tokens` (mean member-tokens of a text, one number per member).
    """
    right: list[str] = []
    counts = []
    for start in range(0, len(questions), 200):
        part = questions[start : start + 200]
        inputs = ensemble.tokenizer([question.prompt for question in part], return_tensors="pt", padding=True)
        torch.manual_seed(seed or 0)
        output = ensemble.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            return_dict_in_generate=True,
            **({"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0}),
        )
        ids = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = ensemble.tokenizer.batch_decode(ids, skip_special_tokens=True)
        right += ["1" if q.is_solved_by(text) else "0" for q, text in zip(part, texts, strict=True)]
        counts.append(member_tokens(ensemble, output))
    return {"right": "".join(right), "tokens": torch.cat(counts).double().mean(0).tolist()}
