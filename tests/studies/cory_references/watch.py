"""What is watched while agents are trained: alone, in their roles, and as a team, with two controls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.studies.cory_references.base import answer_logps, read_references
from tests.studies.cory_watch import Watch, agents_of, alone, sample_with_kls

ALONE, IN_ROLE, TEAM = "alone", "in role", "team"
UNTRAINED, OWN_ANSWER = "untrained observer", "own answer"
"""The two controls: the base reads the agent's answer, and the agent reads its own."""

BASE = None
"""The agent without a name is the base."""


@dataclass(frozen=True)
class Pass:
    """One agent's answers to all questions.

    Attributes:
        answers (`list[str]`): sampled at temperature 1; empty for the base, whose answers nobody reads.
        reward (`float`): the mean probability of the right answer, exact.
        kl (`float`), text_kl (`float`): exact KL to the base, in nats a token and in nats a text, over the answers.
    """

    answers: list[str]
    reward: float
    kl: float
    text_kl: float


@torch.no_grad()
def answered(
    trainer: Any, agent: str | None, prompts: Sequence[str], right: Sequence[str], num_tokens: int, seed: int
) -> Pass:
    """Asks one agent, or the base, with the same random numbers at each call with one seed.

    Args:
        trainer: of the agent.
        agent (`str`, *optional*): its name; `BASE` for the base.
        prompts (`Sequence[str]`): of its role.
        right (`Sequence[str]`): the right answers.
        num_tokens (`int`): of an answer, at most.
        seed (`int`): of the answers; an answer and its reference need different ones.
    """
    model, tokenizer = trainer.model, trainer.processing_class
    if agent is BASE:
        with model.disable_adapter():
            return Pass([], float(answer_logps(model, tokenizer, prompts, right).exp().mean()), 0.0, 0.0)
    with alone(trainer, agent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        texts = sample_with_kls(model, tokenizer, prompts, num_tokens)
        reward = float(answer_logps(model, tokenizer, prompts, right).exp().mean())
    means = texts.means()
    return Pass(texts.completions, reward, means["kl"], means["text_kl"])


def in_role(passes: Sequence[Pass]) -> list[float]:
    """The mean over agents on their own prompts, as the paper looks at it: reward, KL a token, KL a text."""
    return np.mean([[one.reward, one.kl, one.text_kl] for one in passes], axis=0).tolist()


def as_team(passes: Sequence[Pass]) -> list[float]:
    """The reward of the last answer; KLs are means over all passes that led to it."""
    return [passes[-1].reward, *in_role(passes)[1:]]


def look(trainer: Any, prompts: Sequence[str], right: Sequence[str], num_tokens: int) -> dict[str, dict[str, Any]]:
    """All that is looked at: reward, KL a token and KL a text, by view and by agent (or `agents`, of all of them).

    A chain is measured in each order that an exchange of roles leads to; the means count. A single agent's role is to
    answer alone.

    Args:
        trainer: of one agent or of several.
        prompts (`Sequence[str]`), right (`Sequence[str]`): questions and their answers.
        num_tokens (`int`): of an answer, at most.
    """
    names = agents_of(trainer)

    def after(agent: str | None, passes: Sequence[Pass]) -> list[Pass]:
        earlier = zip(*(one.answers for one in passes), strict=True)
        asked = [read_references(prompt, answers) for prompt, answers in zip(prompts, earlier, strict=True)]
        return [*passes, answered(trainer, agent, asked, right, num_tokens, seed=len(passes))]

    first = {name: [answered(trainer, name, prompts, right, num_tokens, seed=0)] for name in names}
    untrained = {name: after(BASE, first[name]) for name in names}
    own = {name: after(name, first[name]) for name in names}
    views: dict[str, dict[str, Any]] = {ALONE: {name: in_role(first[name]) for name in names}}
    for control, found in ((UNTRAINED, untrained), (OWN_ANSWER, own)):
        views[f"{IN_ROLE}, {control}"] = {name: in_role(found[name]) for name in names}
        views[f"{TEAM}, {control}"] = {name: as_team(found[name]) for name in names}
    if len(names) > 1:
        chains = []
        for shift in range(len(names)):
            leader, *others = [*names[shift:], *names[:shift]]
            chain = first[leader]
            for name in others:
                chain = after(name, chain)
            chains.append(chain)
        views[IN_ROLE] = {"agents": np.mean([in_role(chain) for chain in chains], axis=0).tolist()}
        views[TEAM] = {"agents": np.mean([as_team(chain) for chain in chains], axis=0).tolist()}
    return views


class RoleWatch(Watch):
    """Looks at all agents before training and every few steps; see [`look`].

    Attributes:
        views (`dict[str, dict[str, list[list[float]]]]`): by view and agent, a row an evaluation: step, reward, KL a
            token, KL a text.
    """

    def __init__(self, prompts: Sequence[str], right: Sequence[str], every: int, num_tokens: int) -> None:
        super().__init__(prompts, {"answer": right}, lambda **_: [], every, num_tokens)
        self.views: dict[str, dict[str, list[list[float]]]] = {}

    def _evaluate(self, step: int) -> None:
        began = time.process_time()
        model = self.trainer.model
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[]):
            found = look(self.trainer, self.prompts, self.columns["answer"], self.num_tokens)
        for view, rows in found.items():
            for name, row in rows.items():
                curve = self.views.setdefault(view, {}).setdefault(name, [])
                curve.append([step, *(round(value, 5) for value in row)])
        model.train(was_training)
        self.evaluation_seconds += time.process_time() - began
