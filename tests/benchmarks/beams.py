"""How many different texts beams are: `python -m tests.benchmarks.beams`.

If tokenizers differ, one text can be written in several sequences of union tokens, and beam search compares sequences.
Two embedded members, one of characters and one of pieces of words, answer questions of arithmetic with equal weights.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_rlae import EnsembleForCausalLM, load_demo_members, load_task
from tests.benchmarks.command import finish
from tests.benchmarks.costs import table

BEAMS = (2, 4, 8)
MEMBERS = {"one": "shared", "different": "different"}
"""The embedded members by their tokenizers; the first and the third answer."""
CASES = (("one", "token"), ("different", "token"), ("different", "character"))


def distinct(ensemble: EnsembleForCausalLM, prompt: str, beams: int, tokens: int) -> tuple[int, int]:
    """Numbers of different texts and of different sequences among all beams of a prompt."""
    inputs = ensemble.tokenizer([prompt], return_tensors="pt")
    options = {"num_beams": beams, "num_return_sequences": beams, "do_sample": False}
    ids = ensemble.generate(**inputs, max_new_tokens=tokens, **options)
    texts = ensemble.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return len(set(texts)), len({tuple(row) for row in ids.tolist()})


def rows_of(prompts: Sequence[str], tokens: int) -> list[list[str]]:
    """One row per case: the mean number of different texts and sequences, by number of beams."""
    rows = []
    for tokenizers, grain in CASES:
        members = load_demo_members(MEMBERS[tokenizers])
        ensemble = EnsembleForCausalLM.from_members([members[0], members[2]], grain=grain)
        cells = []
        for beams in BEAMS:
            found = [distinct(ensemble, prompt, beams, tokens) for prompt in prompts]
            texts, sequences = (sum(counts) / len(counts) for counts in zip(*found, strict=True))
            cells.append(f"{texts:.2f} of {sequences:.2f}")
        rows.append([tokenizers, grain, *cells])
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.beams", description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=20, help="prompts per row (default: 20)")
    parser.add_argument("--tokens", type=int, default=40, help="tokens per text at most (default: 40)")
    parser.add_argument("--output", type=Path, help="write the table into this Markdown file, too")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    prompts = load_task("arithmetic_chain", "test", limit=options.questions)["prompt"]
    head = ["tokenizers", "grain", *(f"{beams} beams" for beams in BEAMS)]
    finish([table(head, rows_of(list(itertools.islice(prompts, options.questions)), options.tokens))], options.output)


if __name__ == "__main__":
    main()
