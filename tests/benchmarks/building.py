"""What it costs to make an ensemble of members with large vocabularies, and to write its first text."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from hf_rlae import EnsembleForCausalLM
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary, same_vocabulary
from tests.benchmarks.cases import Case
from tests.benchmarks.contenders import Contender, Stopwatch, inputs_of
from tests.benchmarks.costs import Timing, pair, table
from tests.benchmarks.members import GPT2, NEOX, members_of, prompts_of, tokenizer_of


def timed(function: Callable[[], Any]) -> tuple[Timing, Any]:
    """The time of a call, and its result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall), result


def in_turn(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> list[tuple[Timing, Timing]]:
    """Times of two calls, one pair a round, after one call of each; the first of a round changes."""
    one()
    other()
    found = []
    for number in range(rounds):
        if number % 2:
            first, second = timed(one)[0], timed(other)[0]
        else:
            second, first = timed(other)[0], timed(one)[0]
        found.append((first, second))
    return found


def union_times() -> tuple[Timing, str]:
    """The time for the union of GPT-2's and GPT-NeoX's vocabularies, and a table with its parts."""
    tokenizers = [tokenizer_of(name) for name in (GPT2, NEOX)]
    rounds: list[list[Timing]] = []
    for _ in range(3):
        reading, vocabularies = timed(lambda: [ByteVocabulary(tokenizer) for tokenizer in tokenizers])
        joining, union = timed(lambda v=vocabularies: UnionVocabulary(v))
        aligning, _ = timed(
            lambda v=vocabularies, u=union: [
                Alignment(own, u, [tokenizer.eos_token_id]) for own, tokenizer in zip(v, tokenizers, strict=True)
            ]
        )
        comparing, _ = timed(
            lambda t=tokenizers[0]: same_vocabulary(t.get_vocab(), dict(t.get_vocab()))  # not one object
        )
        parts = [reading, joining, aligning]
        together = Timing(sum(part.cpu for part in parts), sum(part.wall for part in parts))
        rounds.append([*parts, together, comparing])
    found = [
        Timing(median(part.cpu for part in parts), median(part.wall for part in parts))
        for parts in zip(*rounds, strict=True)
    ]
    labels = (
        "bytes of both vocabularies",
        "union",
        "alignments",
        "together",
        "two identical: comparing them",
    )
    rows = [[label, pair(part.of, 3)] for label, part in zip(labels, found, strict=True)]
    return found[3], table(["building", "s"], rows)


def first_text_table(device: str) -> str:
    """The first text of a new ensemble, whose tables by tail are empty, and the same text again."""
    case = Case("small", "different", 2, 1, 64, "sample")
    members = members_of(case.members, case.tokenizers, case.count, device)
    building, ensemble = timed(lambda: EnsembleForCausalLM.from_members(members))
    watch = Stopwatch(device)
    contender = Contender(
        "ensemble", ensemble, inputs_of(ensemble.tokenizer, prompts_of(case), device), ensemble.union.pieces
    )
    found = [contender.run(case.settings, watch, seed=1) for _ in range(3)]
    steps = [[1000 * timing.of(clock) / case.tokens for timing in found] for clock in ("cpu", "wall")]
    rows = [
        ["building the ensemble from its members, s", pair(building.of)],
        ["first text of 64 tokens, ms per token", " / ".join(f"{values[0]:.2f}" for values in steps)],
        ["the same text again", " / ".join(f"{min(values[1:]):.2f}" for values in steps)],
    ]
    return table(["a new ensemble of two small members, batch 1", ""], rows)
