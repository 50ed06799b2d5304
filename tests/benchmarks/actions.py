"""What rollouts of drawn members cost: `python -m tests.benchmarks.actions`.

In every round, rollouts with categorical actions (one drawn member writes a span) and with Dirichlet actions (all
members run) take turns, for a policy that observes the members and for one that reads the text with a small encoder.
No text can end early. The table has the median over rounds of the ratio of their
times, categorical over Dirichlet: below 1, drawing members saves time.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import BertConfig, BertModel

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel
from hf_rlae.trainers.rlae.rollouts import Sampling, write_rollouts
from tests.benchmarks.building import in_turn
from tests.benchmarks.cases import Case
from tests.benchmarks.command import finish
from tests.benchmarks.costs import Timing, pair, table
from tests.benchmarks.members import check_files, members_of, prompts_of, report

ACTIONS = ("categorical", "dirichlet")
TOKENS = 64


def policy_of(members: Sequence[Any], observation: str, action: str, span_length: int) -> PolicyModel:
    """A policy with random heads; of the text, an encoder of one layer reads the newest 64 tokens."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"action": action, "span_length": span_length}
    if observation == "members":
        return PolicyModel(PolicyConfig.for_members(members, **options)).eval()
    tokenizer = members[0].tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    return PolicyModel.from_encoder((BertModel(config), tokenizer), members, **options).eval()


def measure(
    kind: str, tokenizers: str, count: int, rows: int, observation: str, span_length: int, rounds: int
) -> list[tuple[Timing, Timing]]:
    """Times of rollouts, one pair a round, in the order of `ACTIONS`."""
    members = members_of(kind, tokenizers, count, "cpu")
    prompts = prompts_of(Case(kind, tokenizers, count, rows, TOKENS, "sample"))
    calls = []
    for action in ACTIONS:
        policy = policy_of(members, observation, action, span_length)
        ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=span_length)
        encoded = ensemble.tokenizer(prompts, return_tensors="pt", padding=True)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        options = {"min_new_tokens": TOKENS}
        sampling = Sampling(TOKENS, tuple(range(rows)), explores=True, options=options, keeps_logps=False)
        calls.append(lambda e=ensemble, p=policy, i=inputs, s=sampling: write_rollouts(e, p, i, prompts, s))
    return in_turn(*calls, rounds)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.actions", description=__doc__.split("\n")[0])
    parser.add_argument("--members", default="small", choices=["small", "embedded"])
    parser.add_argument("--tokenizers", default="same", choices=["same", "different"])
    parser.add_argument("--count", type=int, default=3, help="number of members")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="texts of a rollout")
    parser.add_argument("--span-lengths", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table into this Markdown file, too")
    options = parser.parse_args(given)
    check_files([(options.members, options.tokenizers, options.count)])
    torch.set_num_threads(1)
    lines = []
    for observation in ("members", "text"):
        for rows in options.rows:
            cells = []
            for length in options.span_lengths:
                found = measure(
                    options.members, options.tokenizers, options.count, rows, observation, length, options.rounds
                )
                cells.append(pair(lambda c, f=found: median(one.of(c) / other.of(c) for one, other in f)))
                report(f"{observation}, {rows} texts, span length {length}: {cells[-1]}")
            lines.append([observation, str(rows), *cells])
    head = ["observation", "texts", *(f"span length {length}" for length in options.span_lengths)]
    finish([table(head, lines)], options.output)


if __name__ == "__main__":
    main()
