"""Dense mixing beside draws of one member: `python -m tests.studies.routing`.

With a learned policy, `draw="span"` is sparse routing: one member is drawn for every span, and only that one is run.
All ways sample at temperature 1 from the same weights; what differs is how long a draw holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.tasks.chains import Question
from hf_rlae.zoo import MEMBER_SETS, load_demo_members, load_demo_policy
from hf_rlae.zoo.solving import MAX_NEW_TOKENS
from tests.studies.chain_policies import held_out_questions
from tests.studies.rlae_tables import StudyTable

WAYS: dict[str, str | None] = {"dense": None, "draw a token": "token", "draw a word": "word", "draw a span": "span"}


def sampled_accuracy(ensemble: EnsembleForCausalLM, questions: Sequence[Question], seed: int) -> float:
    """Share of right answers among one sampled text a question."""
    tokenizer = ensemble.tokenizer
    inputs = tokenizer([question.prompt for question in questions], return_tensors="pt", padding=True)
    set_seed(seed)
    ids = ensemble.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=True,
        top_k=0,
    )
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(q.is_solved_by(text) for q, text in zip(questions, texts, strict=True)) / len(questions)


def seconds_per_token(ensembles: Sequence[EnsembleForCausalLM], prompt: str, rounds: int) -> list[list[float]]:
    """Seconds per written token at batch 1, one entry a round, all ensembles in turn in every round."""
    found: list[list[float]] = [[] for _ in ensembles]
    for seed in range(rounds + 1):
        for ensemble, times in zip(ensembles, found, strict=True):
            inputs = ensemble.tokenizer([prompt], return_tensors="pt")
            set_seed(seed)
            started = time.perf_counter()
            ids = ensemble.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=True,
                top_k=0,
            )
            seconds = time.perf_counter() - started
            if seed:  # the first round warms up
                times.append(seconds / (ids.shape[1] - inputs["input_ids"].shape[1]))
    return found


def routing_table(kind: str, count: int, seeds: int, rounds: int) -> StudyTable:
    """One row a way: right answers (mean and range over seeds), and time per token against dense mixing."""
    members, policy = load_demo_members(kind), load_demo_policy(kind)
    span_length = policy.config.span_length
    ensembles = [
        EnsembleForCausalLM.from_members(members, policy, span_length=span_length, draw=draw) for draw in WAYS.values()
    ]
    questions = held_out_questions(count)
    times = seconds_per_token(ensembles, questions[0].prompt, rounds)
    rows: list[tuple[str, ...]] = []
    for way, ensemble, own in zip(WAYS, ensembles, times, strict=True):
        shares = [sampled_accuracy(ensemble, questions, seed) for seed in range(seeds)]
        ratios = sorted(mine / dense for mine, dense in zip(own, times[0], strict=True))
        rows.append(
            (
                way,
                f"{sum(shares) / seeds:.3f} ({min(shares):.3f} to {max(shares):.3f})",
                f"{ratios[len(ratios) // 2]:.2f}",
            )
        )
    return StudyTable(("weights of the learned policy", "right answers, sampled", "time per token"), tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one table a set of members."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.routing", description=__doc__)
    parser.add_argument("--members", nargs="+", default=list(MEMBER_SETS), choices=list(MEMBER_SETS))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="of the timing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    console = Console()
    for kind in options.members:
        table: Any = routing_table(kind, options.questions, options.seeds, options.rounds)
        console.print(table.shown(f"{kind} tokenizers"))


if __name__ == "__main__":
    main()
