"""The work of `hf-rlae demo`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from transformers.utils.logging import disable_progress_bar

from hf_rlae.baselines.fixed_weights import best_fixed_weights, simplex_grid
from hf_rlae.cli.progress import progress_bar
from hf_rlae.cli.streaming import CarrierStreamer
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import present
from hf_rlae.members import Member
from hf_rlae.policies import PolicyModel, StaticPolicy
from hf_rlae.reports import legend, plot_token_weights, save_figure, span_table, trace_tokens
from hf_rlae.tasks.chains import OPERATORS, Question, draw_questions, parse_question
from hf_rlae.zoo import SPECIALISTS, OraclePolicy, load_demo_members, load_demo_policy
from hf_rlae.zoo.solving import MAX_NEW_TOKENS, accuracy

RESOLUTION = 4
NUM_VALIDATION = 60


def show(args: argparse.Namespace) -> None:
    """Shows the members, one text and the table of accuracies, and writes the picture.

    Args:
        args (`argparse.Namespace`): the checked arguments of `hf-rlae demo`.
    """
    disable_progress_bar()
    console = Console(file=sys.stdout)
    members = load_demo_members(args.tokenizers)
    console.print(_members_table(members))
    policy = _train(console, members, args) if args.train else load_demo_policy(args.tokenizers)
    _write_one(console, members, policy, args)
    console.print(_accuracy_table(members, policy, args.questions))
    console.print(
        "The learned policy received rewards for right answers only. 'Switching' knows the next operator and gives its "
        "specialist all the weight: an upper bound for weights that change with the text.",
        highlight=False,
    )


def _members_table(members: Sequence[Member]) -> Table:
    numbers = Column("tokens", justify="right"), Column("parameters", justify="right")
    table = _table("Three members", "member", "right on", "tokenizer", *numbers)
    for member, operator in zip(members, OPERATORS, strict=True):
        parameters = sum(p.numel() for p in member.model.parameters())
        kind = SPECIALISTS[member.name].tokenizer
        table.add_row(member.name, operator, kind, str(len(member.tokenizer)), f"{parameters:,}")
    return table


def _table(title: str, *columns: Column | str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")


def _train(console: Console, members: Sequence[Member], args: argparse.Namespace) -> PolicyModel:
    """Trains a policy, with a progress bar."""
    # importing the trainer takes seconds
    training = importlib.import_module("hf_rlae.cli.demo_training")
    started = time.perf_counter()
    policy: PolicyModel = training.train_policy(args.tokenizers, members, console, args.seed)
    console.print(f"The policy was trained in {time.perf_counter() - started:.0f} s.\n", highlight=False)
    return policy


def _write_one(console: Console, members: Sequence[Member], policy: PolicyModel, args: argparse.Namespace) -> None:
    """Streams one text, then shows its spans and draws its weights."""
    names = [member.name for member in members]
    span_length = present(policy.config.span_length, "the span length of the policy")
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=span_length)
    question = parse_question(args.chain)
    prompt = question.prompt
    inputs = ensemble.tokenizer([prompt], return_tensors="pt")
    console.print("One text, with every token in the colour of the member that carried it:")
    console.print(legend(names))
    console.print()
    cache = ensemble.new_cache(record=True)
    out = ensemble.generate(
        **inputs,
        past_key_values=cache,
        streamer=CarrierStreamer(ensemble, cache, console, prompt),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
    )
    console.print()
    tokens = trace_tokens(ensemble, out, inputs["input_ids"].shape[1])[0]
    completion = b"".join(token.raw for token in tokens).decode("utf-8", "replace")
    answer = question.answer
    said = f"The answer, {answer}, is right." if question.is_solved_by(completion) else None
    console.print(said or f"The answer is wrong: {question.expression} is {answer}.", style="green" if said else "red")
    console.print(span_table(names, tokens))
    save_figure(plot_token_weights(names, tokens, prompt), args.picture)
    console.print(
        f"The picture of the weights is in {os.path.abspath(args.picture)}\n", highlight=False, soft_wrap=True
    )


def _accuracy_table(members: Sequence[Member], policy: PolicyModel, count: int) -> Table:
    """Accuracies on held-out questions: each member alone, fixed weights, the learned policy, and switching."""
    test, validation = draw_questions(count, splits=("test",)), draw_questions(NUM_VALIDATION, splits=("validation",))
    size, span_length = len(members), present(policy.config.span_length, "the span length of the policy")
    fixed = EnsembleForCausalLM.from_members(members)
    learned = EnsembleForCausalLM.from_members(members, policy, span_length=span_length)
    oracle = EnsembleForCausalLM.from_members(members, OraclePolicy(), span_length=span_length)
    with progress_bar() as progress:
        task = progress.add_task("", total=size + 4 + len(simplex_grid(size, RESOLUTION)))

        def measure(ensemble: EnsembleForCausalLM, questions: Sequence[Question] = test) -> float:
            progress.update(task, description="testing" if questions is test else "searching fixed weights")
            share = accuracy(ensemble, ensemble.tokenizer, questions)
            progress.advance(task)
            return share

        def measure_fixed(weights: Sequence[float], questions: Sequence[Question] = test) -> float:
            fixed.set_policy(StaticPolicy(list(weights)))
            return measure(fixed, questions)

        alone = zip(members, torch.eye(size).tolist(), strict=True)
        rows = [(f"{member.name} alone", measure_fixed(weights)) for member, weights in alone]
        rows.append(("uniform weights", measure_fixed([1 / size] * size)))
        best = best_fixed_weights(lambda weights: measure_fixed(weights, validation), size, RESOLUTION)
        shown = ", ".join(f"{weight:.1f}" for weight in best.weights)
        rows.append((f"best fixed weights ({shown})", measure_fixed(best.weights)))
        rows += [("learned policy", measure(learned)), ("switching", measure(oracle))]
    table = _table(f"Right answers to {count} held-out questions", "weights", Column("right", justify="right"))
    for label, share in rows:
        table.add_row(label, f"{share:.0%}")
    return table
