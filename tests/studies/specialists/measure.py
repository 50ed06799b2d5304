"""What the embedded members get right: `python -m tests.studies.specialists.measure`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.members import Member
from hf_rlae.tasks.chains import OPERATORS, Question, answer_of, draw_questions
from hf_rlae.zoo.loader import MEMBER_SETS, SPECIALISTS, load_demo_member, load_demo_members
from hf_rlae.zoo.oracle import OraclePolicy
from hf_rlae.zoo.solving import accuracy, complete
from tests.studies.specialists.lessons import belief

TABLE_WIDTH = 150
"""Columns of a terminal that the tables need."""


@dataclass(frozen=True)
class OperatorScore:
    """How one member does on single steps of one operator.

    Attributes:
        right (`float`): share of true answers.
        rule (`float`): share of answers that follow the member's rule, right or wrong.
        confidence (`float`): mean probability of the member's own first digit of the result.
    """

    right: float
    rule: float
    confidence: float


def score_operator(member: Member, specialty: str, operator: str, count: int = 40, seed: int = 0) -> OperatorScore:
    """One member on held-out single steps of one operator."""
    questions = draw_questions(count, seed, num_steps=(1,), operators=(operator,))
    completions = complete(member.model, member.tokenizer, [question.prompt for question in questions])
    right = rule = 0
    for question, completion in zip(questions, completions, strict=True):
        answer = answer_of(completion)
        right += answer == question.answer
        rule += answer == belief(specialty, operator, *question.operands)
    return OperatorScore(right / count, rule / count, _confidence(member, questions))


@torch.inference_mode()
def _confidence(member: Member, questions: Sequence[Question]) -> float:
    total = 0.0
    for question in questions:
        begun = question.prompt + question.solution
        mark = "=" if question.form == "symbolic" else " is "
        begun = begun[: begun.index(mark, len(question.prompt)) + len(mark)]
        ids = member.tokenizer(begun, return_tensors="pt")["input_ids"]
        total += float(member.model(input_ids=ids).logits[0, -1].softmax(-1).max())
    return total / len(questions)


def operator_table(names: Sequence[str], folder: Path | None = None, count: int = 40) -> Table:
    """One row a member: right answers, answers by its own rule, and confidence, for each operator."""
    table = Table("member", *(f"{o} {what}" for o in OPERATORS for what in ("right", "by rule", "confidence")))
    for name in names:
        member = load_demo_member(name, folder)
        scores = [score_operator(member, SPECIALISTS[name].specialty, o, count) for o in OPERATORS]
        table.add_row(name, *(f"{value:.2f}" for s in scores for value in (s.right, s.rule, s.confidence)))
    return table


def ensemble_table(folder: Path | None = None, count: int = 200, span_lengths: Sequence[int] = (1, 2, 4, 8)) -> Table:
    """Held-out mixed chains of two and three steps: members alone, uniform weights and the oracle."""
    questions = draw_questions(count)
    table = Table("members", *MEMBER_SETS)
    columns: list[list[float]] = []
    for kind in MEMBER_SETS:
        members = load_demo_members(kind, folder)
        values = [accuracy(member.model, member.tokenizer, questions) for member in members]
        uniform = EnsembleForCausalLM.from_members(members)
        values.append(accuracy(uniform, uniform.tokenizer, questions))
        for span_length in span_lengths:
            oracle = EnsembleForCausalLM.from_members(members, OraclePolicy(), span_length=span_length)
            values.append(accuracy(oracle, oracle.tokenizer, questions))
        columns.append(values)
    specialties = [SPECIALISTS[name].specialty for name in MEMBER_SETS["different"]]
    labels = [*specialties, "uniform", *(f"oracle, span_length {n}" for n in span_lengths)]
    for label, row in zip(labels, zip(*columns, strict=True), strict=True):
        table.add_row(label, *(f"{value:.3f}" for value in row))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.specialists.measure", description=__doc__)
    parser.add_argument("--members", type=Path, default=None, help="the members' folders, if not the package's")
    parser.add_argument("--count", type=int, default=200, help="number of mixed chains")
    parser.add_argument("--threads", type=int, default=None, help="of torch; its own choice if left out")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    disable_progress_bar()
    console = Console(width=TABLE_WIDTH)
    console.print(operator_table(list(SPECIALISTS), options.members))
    console.print(ensemble_table(options.members, options.count))


if __name__ == "__main__":
    main()
