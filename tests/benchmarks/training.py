"""What training a policy costs: `python -m tests.benchmarks.training`.

In every round three take turns: one step of `RLAETrainer` (a rollout and an update, objective `mixture`, or `ppo` with
draws of words, of spans, or across tokenizers), one step of TRL's `GRPOTrainer` on a copy of the first member (all of
it, no reference model), and every member's own sampling `generate`, on the same prompts, with the same number of texts
and of tokens; nothing can end early. The policy observes the members at spans of 8 tokens and gives uniform weights.

* A rollout's ratio is its time per token (prompts encoded, texts decoded, records made) over the sum of the members'
  times per token. Modes `draw-*` run one drawn member at a time. For `mixture` every member then reads the finished
  texts once more, by teacher forcing, which counts; `ppo` needs no such pass.
* An update is what a step does beside its rollout, its rewards and its advantages.

Tables hold medians over rounds of CPU and wall time. Memory is measured by itself, with some of the cases:
`--cases memory`. Members are those of `tests.benchmarks.decode`; embedded ones need no files.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers.utils import logging

from tests.benchmarks.building import timed
from tests.benchmarks.cases import matches
from tests.benchmarks.command import case_parser, finish, parse_cases
from tests.benchmarks.costs import pair, table
from tests.benchmarks.members import check_files, report
from tests.benchmarks.training_cases import TrainingCase, TrainingResult, chosen_cases

MEMORY = "memory"
"""What `--cases` calls the measurement of memory."""

DENSE_LIMIT, DRAW_LIMIT = 1.05, 0.75
"""The most that rollouts may cost, in parts of the members' sum."""


class Times:
    """What the rounds of one case say, by clock (`"cpu"` or `"wall"`).

    Args:
        result (`TrainingResult`): of the case.
    """

    def __init__(self, result: TrainingResult) -> None:
        self.case = result.case
        self.rounds = result.rounds

    def rollout(self, who: str, clock: str) -> list[float]:
        """Microseconds per token of a text, one a round; `who` is `"rlae"`, `"grpo"` or `"members"`, their sum."""
        scale = 1e6 / (self.case.tokens * self.case.batch)
        if who == "members":
            return [
                scale * sum(timing.of(clock) for name, timing in entry.items() if name.startswith("member"))
                for entry in self.rounds
            ]
        return [scale * entry[f"{who} rollout"].of(clock) for entry in self.rounds]

    def ratio(self, clock: str) -> float:
        """A rollout's time over that of the members."""
        pairs = zip(self.rollout("rlae", clock), self.rollout("members", clock), strict=True)
        return median(own / other for own, other in pairs)

    def update(self, who: str, clock: str) -> list[float]:
        """Milliseconds of an update, one a round."""
        return [1e3 * (entry[f"{who} step"].of(clock) - entry[f"{who} filling"].of(clock)) for entry in self.rounds]

    def step_ratio(self, clock: str) -> float:
        """The time of a whole step over `GRPOTrainer`'s."""
        return median(entry["rlae step"].of(clock) / entry["grpo step"].of(clock) for entry in self.rounds)

    def token_bytes(self, who: str) -> float:
        """Mean bytes of a token; `"member"` for all members."""
        found = [timing.num_bytes for entry in self.rounds for name, timing in entry.items() if name.startswith(who)]
        kept = [count for count in found if count]
        return sum(kept) / len(kept) / (self.case.tokens * self.case.batch)


def costs_table(found: Sequence[Times]) -> str:
    """Times and ratios, one row a case."""
    head = [
        "members, tokenizers",
        "M",
        "texts",
        "tokens",
        "mode",
        "members, µs per token",
        "rollout, µs per token",
        "ratio",
        "bytes per token",
        "members'",
        "update, ms",
        "GRPO: rollout, µs per token",
        "update, ms",
        "step over GRPO's",
    ]
    rows = []
    for times in found:
        case = times.case
        rows.append(
            [
                f"{case.members}, {case.tokenizers}",
                str(case.count),
                f"{case.prompts} x {case.generations}",
                str(case.tokens),
                case.mode,
                *[pair(lambda c, t=times, w=who: median(t.rollout(w, c)), 0) for who in ("members", "rlae")],
                pair(times.ratio),
                f"{times.token_bytes('rlae rollout'):.1f}",
                f"{times.token_bytes('member'):.1f}",
                pair(lambda c, t=times: median(t.update("rlae", c)), 0),
                pair(lambda c, t=times: median(t.rollout("grpo", c)), 0),
                pair(lambda c, t=times: median(t.update("grpo", c)), 0),
                pair(times.step_ratio),
            ]
        )
    return table(head, rows)


def targets_table(found: Sequence[Times], is_storage_fixed: bool | None) -> str:
    """What rollouts were to cost, and whether they do."""
    rows = []
    for times in found:
        limit = DENSE_LIMIT if times.case.draws is None else DRAW_LIMIT
        values = [times.ratio(clock) for clock in ("cpu", "wall")]
        verdicts = dict.fromkeys("met" if value <= limit else "not met" for value in values)
        shown = " / ".join(f"{value:.2f}" for value in values)
        rows.append([f"{times.case.name}: ratio", f"{limit:.2f}", shown, " / ".join(verdicts)])
    if is_storage_fixed is not None:
        rows.append(["rollouts keep as much with any vocabulary", "", "", "met" if is_storage_fixed else "not met"])
    return table(["target", "at most", "CPU / wall", ""], rows) if rows else ""


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    example = "'embedded-*', '*-dense' or memory"
    return parse_cases(case_parser("training", __doc__, "5", example, "few texts, one round"), given, _choose)


def _choose(options: argparse.Namespace) -> bool:
    options.weighs = matches(MEMORY, options.cases)
    options.chosen = chosen_cases(options.cases, options.quick)
    return bool(options.chosen) or options.weighs


def memory_cases(quick: bool) -> list[TrainingCase]:
    """Of each kind of members one dense case, and one with draws, whose finished texts are read once more."""
    found = [case for case in chosen_cases([], quick) if case.mode in ("dense", "draw-word")]
    return found[:1] if quick else found


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    options = arguments(given)
    if options.list:
        print("\n".join([*(case.name for case in options.chosen), *([MEMORY] if options.weighs else [])]))
        return
    cases = [*options.chosen, *(memory_cases(options.quick) if options.weighs else [])]
    check_files((case.members, case.tokenizers, case.count) for case in cases)
    # TRL takes many seconds to import
    from tests.benchmarks.training_contenders import measure
    from tests.benchmarks.training_memory import measure_memory, memory_table, storage_table

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    found = []
    for number, case in enumerate(options.chosen, 1):
        spent, result = timed(lambda c=case: measure(c, options.rounds or (1 if options.quick else 5)))
        found.append(Times(result))
        report(f"[{number}/{len(options.chosen)}] {case.name}: ratio {pair(found[-1].ratio)} ({spent.wall:.0f} s)")
    storage, is_fixed = storage_table() if options.weighs else ("", None)
    weighed = [measure_memory(case) for case in memory_cases(options.quick)] if options.weighs else []
    setting = f"CPU, {torch.get_num_threads()} thread(s); torch {torch.__version__}. Pairs are CPU / wall time."
    parts = [setting, targets_table(found, is_fixed), costs_table(found) if found else "", storage]
    parts.append(memory_table(weighed) if weighed else "")
    finish(parts, options.output)


if __name__ == "__main__":
    main()
