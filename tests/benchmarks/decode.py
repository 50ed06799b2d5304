"""What a step of an ensemble costs: `python -m tests.benchmarks.decode`.

In every round the ensemble, the same ensemble with plain appending (see `tests.benchmarks.appending`) and
every member's own `generate` take turns, with the same decoding mode and the same number of new tokens, and
nothing can end early. A ratio is the ensemble's time per emitted token over the sum of the members' own; the
tables hold medians over rounds. With different tokenizers an ensemble's tokens are not the members' own; the
tables show how many bytes both have on average.

"Forwards in turn" are only the members' forward passes, one of each member at every step on ids given
beforehand, over the same sum. An ensemble that runs its members in turn cannot be faster, and where they push
each other's weights out of the processor's caches, that alone can cost as much as their own `generate`.

Members are "real" (tiny models; short contexts) or "small" (4 layers, 256 wide, with the real GPT-2 and
GPT-NeoX tokenizers, trained on the spot, see `tests.benchmarks.peaked`). "flat" members are like small ones
with random weights; nothing writes or reads text as they do, but they show the other end. "narrow" ones (2 layers,
16 wide, random) cost next to nothing themselves, so that what an ensemble's step does beside them, and whether it grows
with the text, can be seen through the noise of the others. "embedded" ones are those of `hf_rlae.load_demo_members()`
(different tokenizers) and `load_demo_members("shared")`; they answer arithmetic, and need no files beside the package.
"large" ones are of the shape of a model with a billion parameters and 150,000 ids (bf16, on a GPU; most ids past
the tokenizer's stand for nothing). A third small member, and the second one where all have one tokenizer, is a copy of
the first with noise on its weights.

Modes: see `tests.benchmarks.cases`. A processor takes turns with `EnsembleForCausalLM` as well. A learned policy takes
turns with uniform weights on the same ensemble; its own weights are uniform, too, so that both write the same text. The
median over rounds says what it adds, keeping hidden states included; the quartiles say how noisy the rounds were. The
time inside the policy is measured by itself, too.

Single groups: `--cases 'draw-*'`, `'processor-*'`, `'policy-*'`, `'embedded-*'`, `'narrow-*'`, `'building'`, and
`'scale-*'`, the engine's own time with many rows and members (see `tests.benchmarks.scale`; `--against PATH` compares
two commits).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers.utils import logging

from tests.benchmarks import peaked
from tests.benchmarks.building import first_text_table, timed, union_times
from tests.benchmarks.cases import Case, chosen_cases, matches
from tests.benchmarks.command import case_parser, finish, parse_cases
from tests.benchmarks.contenders import measure
from tests.benchmarks.costs import (
    Result,
    costs_table,
    growth_table,
    growths,
    overhead_table,
    pair,
    policy_table,
    processor_table,
)
from tests.benchmarks.members import check_files, members_of, report, stories
from tests.benchmarks.scale import SCALE_CASES, scale_table
from tests.benchmarks.targets import targets_table

BUILDING = "building"
"""What `--cases` calls the time for the union and for a first text."""


def setting(cases: Sequence[Case], device: str) -> str:
    """What it was measured on."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} thread(s)"
    lines = f"{name}; torch {torch.__version__}. Pairs are CPU / wall time, in ms per step where nothing else is said."
    if any(case.members == "small" for case in cases):
        entropies = [
            f"{peaked.mean_entropy(member.model, member.tokenizer, stories()[:4000]):.1f}"
            for member in members_of("small", "different", 2, device)
        ]
        lines += f" The small members' distributions have {' and '.join(entropies)} nats on average, on text that they "
        lines += "were trained on."
    return lines


def measured(cases: Sequence[Case], rounds: int | None, quick: bool, device: str) -> list[Result]:
    """All results, with a line of progress for each."""
    results = []
    for number, case in enumerate(cases, 1):
        spent, result = timed(lambda c=case: measure(c, rounds or c.rounds(quick), device))
        results.append(result)
        to = "ensemble" if case.kind == "policy" else "members"
        ratios = pair(lambda clock, r=result, t=to: r.ratio(r.subject, clock, t))
        report(f"[{number}/{len(cases)}] {case.name}: ratio {ratios} ({spent.wall:.0f} s)")
    return results


def tables(results: Sequence[Result]) -> list[str]:
    """The tables that there are results for."""
    kinds = {kind: [result for result in results if result.case.kind == kind] for kind in ("processor", "policy")}
    others = [result for result in results if result.case.kind not in kinds]
    found = growths(results)
    return [
        costs_table(others) if others else "",
        processor_table(kinds["processor"]) if kinds["processor"] else "",
        policy_table(kinds["policy"]) if kinds["policy"] else "",
        overhead_table([r for r in results if r.outside]) if any(r.outside for r in results) else "",
        growth_table(found) if found else "",
    ]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    rounds, example = "5 at batch 1; fewer if long, 32 of policies", "'different-m2-b1' or 'draw-*'"
    parser = case_parser("decode", __doc__, rounds, example, "few tokens, few rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda adds large members in bf16")
    parser.add_argument("--against", type=Path, help="another checkout, which takes turns in the cases 'scale-*'")
    return parse_cases(parser, given, _choose)


def _choose(options: argparse.Namespace) -> bool:
    options.builds = matches(BUILDING, options.cases)
    options.chosen = chosen_cases(options.cases, options.quick, options.device)
    options.scale = [case for case in SCALE_CASES if options.cases and matches(case.name, options.cases)]
    return bool(options.chosen) or options.builds or bool(options.scale)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    options = arguments(given)
    if options.list:
        names = [case.name for case in [*options.chosen, *options.scale]]
        print("\n".join([*names, *([BUILDING] if options.builds else [])]))
        return
    scale = scale_table(options.scale, options.rounds or 5, options.against) if options.scale else ""
    if not options.chosen and not options.builds:
        finish([scale], options.output)
        return
    needed = [(case.members, case.tokenizers, case.count) for case in options.chosen]
    check_files([*needed, ("small", "different", 2)] if options.builds else needed)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    union_time, building = union_times() if options.builds else (None, "")
    results = measured(options.chosen, options.rounds, options.quick, options.device)
    parts = [setting(options.chosen, options.device), targets_table(results, growths(results), union_time)]
    parts += [*tables(results), building, first_text_table(options.device) if options.builds else ""]
    finish([*parts, scale], options.output)


if __name__ == "__main__":
    main()
