"""What a look-ahead costs: `python -m tests.benchmarks.look_ahead`.

In every round, greedy generation by a policy with and without `lookahead_tokens` take turns. No text can end early.
The table has the median over rounds of the ratio of their times, with over without.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel
from tests.benchmarks.building import in_turn
from tests.benchmarks.cases import Case
from tests.benchmarks.command import finish
from tests.benchmarks.costs import Timing, pair, table
from tests.benchmarks.members import check_files, members_of, prompts_of, report

TOKENS = 64


def measure(
    kind: str, tokenizers: str, count: int, rows: int, span_length: int, lookahead: int, rounds: int
) -> list[tuple[Timing, Timing]]:
    """Times of generation, one pair a round: without and with a look-ahead."""
    members = members_of(kind, tokenizers, count, "cpu")
    prompts = prompts_of(Case(kind, tokenizers, count, rows, TOKENS, "sample"))
    calls = []
    for ahead in (0, lookahead):
        torch.manual_seed(0)
        settings = {"span_length": span_length, "lookahead_tokens": ahead}
        policy = PolicyModel(PolicyConfig.for_members(members, **settings)).eval()
        ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=span_length)
        encoded = ensemble.tokenizer(prompts, return_tensors="pt", padding=True)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        calls.append(lambda e=ensemble, i=inputs, o=options: e.generate(**i, **o))
    return in_turn(*calls, rounds)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.look_ahead", description=__doc__.split("\n")[0])
    parser.add_argument("--members", default="small", choices=["small", "embedded"])
    parser.add_argument("--tokenizers", nargs="+", default=["same", "different"], choices=["same", "different"])
    parser.add_argument("--count", type=int, default=3, help="number of members")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="texts at a time")
    parser.add_argument("--span-length", type=int, default=8)
    parser.add_argument("--lookaheads", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table into this Markdown file, too")
    options = parser.parse_args(given)
    check_files([(options.members, tokenizers, options.count) for tokenizers in options.tokenizers])
    torch.set_num_threads(1)
    lines = []
    for tokenizers in options.tokenizers:
        for rows in options.rows:
            cells = []
            for ahead in options.lookaheads:
                where = (options.members, tokenizers, options.count, rows, options.span_length, ahead)
                found = measure(*where, options.rounds)
                cells.append(pair(lambda c, f=found: median(other.of(c) / one.of(c) for one, other in f)))
                report(f"{tokenizers} tokenizers, {rows} texts, {ahead} tokens: {cells[-1]}")
            lines.append([tokenizers, str(rows), *cells])
    head = ["tokenizers", "texts", *(f"{ahead} tokens" for ahead in options.lookaheads)]
    finish([table(head, lines)], options.output)


if __name__ == "__main__":
    main()
