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
from transformers.trainer_callback import PrinterCallback

from hf_rlae.cli.demo_training import chain_dataset, chain_reward
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.evaluation.member_tokens import member_tokens
from hf_rlae.policies import PolicyModel, PolicyState
from hf_rlae.tasks.chains import OPERATORS, Question, draw_questions
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from hf_rlae.zoo import OraclePolicy
from hf_rlae.zoo.solving import MAX_NEW_TOKENS
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
        supervised_epochs (`int`): passes over the oracle's labels before reinforcement learning; 0 for none.
        stages (`tuple[tuple[int, float], ...]`): numbers of steps of the questions, and the share of each.
        rollouts (`int`): of reinforcement learning with `ppo`; 0 for none.
        texts (`int`), generations (`int`), updates (`int`), iterations (`int`): as in `PolicyTraining`.
        learning_rate (`float`): falls to 0 linearly.
        advantages (`str`, *optional*): see `RLAEConfig`; group-relative ones are divided by the deviation of a rollout.
    """

    prices: tuple[float, ...]
    supervised_epochs: int
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


def training_questions(kind: str, training: RouterTraining, seed: int) -> list[Question]:
    """The questions of all rollouts in a random order; none is held out."""
    total = max(1, training.rollouts) * training.texts // training.generations
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
    policies = chains.PolicyTraining("ppo", observation="text", stages=training.stages)
    if training.supervised_epochs and span_length is not None:
        policy = chains.supervise_policy(members, span_length, policies, seed, training.supervised_epochs)
    else:
        policy = chains.new_policy(members, span_length or 1, policies, seed)
        policy.config.span_length = span_length
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
        questions = training_questions(kind, training, seed)
        trainer = RLAETrainer(ensemble, chain_reward, args, chain_dataset(questions))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    names = ("reward", "member_cost", "member_tokens/mean")
    logs = [{name: log[name] for name in names if name in log} for log in trainer.state.log_history if "reward" in log]
    return policy.eval(), logs


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
