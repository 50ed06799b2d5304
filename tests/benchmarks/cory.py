"""What a second agent costs: `python -m tests.benchmarks.cory`.

In every round one optimizer step of `CoryTrainer` with two agents and one of TRL's `GRPOTrainer` take turns: the same
model, adapter, prompts, numbers of texts and of tokens; nothing can end early. A step is a rollout (texts, rewards,
log-probabilities of the base) and an update.

* With P tokens of prompt, C of completion and T of the observer's template, GRPO passes P + C tokens per text through
  the model and two agents pass (P + C) + (P + C + T + C), so a step is to cost `2 + (C + T) / (P + C)` as much. FLOPs
  are those of matrix products, counted by `torch.utils.flop_counter`, attention among them.
* Memory is the most bytes of tensors that are alive at a time, with the model. The observer's texts are longer, so
  CORY is held against GRPO on prompts as long as the observer's; GRPO on the pioneer's is shown beside it.

Tables hold medians over rounds of CPU and wall time. Models are random: no files are needed.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers.utils import logging

from tests.benchmarks.building import timed
from tests.benchmarks.cases import matches
from tests.benchmarks.command import case_parser, finish, parse_cases
from tests.benchmarks.costs import Timing, pair, table
from tests.benchmarks.members import report

FLOPS_LIMIT, TIME_LIMIT = 0.05, 0.10
"""By which part of it FLOPs may lie beside the theory, and time above."""

TEMPLATE = "so: {answers}. now: {prompt}"
"""Of the observer; a character is a token."""


@dataclass(frozen=True)
class CoryCase:
    """One step of each trainer.

    Attributes:
        kind (`str`): what the case is called by.
        hidden_size (`int`), layers (`int`): of the model.
        prompts (`int`), generations (`int`): a rollout has `prompts * generations` texts an agent.
        prompt_tokens (`int`), tokens (`int`): of a prompt and of every text.
        is_checkpointing (`bool`): whether activations are computed anew in the backward pass, TRL's default.
    """

    kind: str
    hidden_size: int
    layers: int
    prompts: int
    generations: int
    prompt_tokens: int
    tokens: int
    is_checkpointing: bool = False

    @property
    def name(self) -> str:
        """What `--cases` is matched with."""
        shape = f"h{self.hidden_size}-p{self.prompt_tokens}-c{self.tokens}"
        return f"{self.kind}-{shape}" + "-checkpointing" * self.is_checkpointing

    @property
    def batch(self) -> int:
        """Texts of an agent's rollout."""
        return self.prompts * self.generations

    @property
    def template_tokens(self) -> int:
        """Of `TEMPLATE`, without what is put in."""
        return len(TEMPLATE.format(prompt="", answers=""))

    @property
    def observer_tokens(self) -> int:
        """Of an observer's prompt."""
        return self.prompt_tokens + self.tokens + self.template_tokens

    @property
    def theory(self) -> float:
        """Tokens of two agents over those of one."""
        return 2 + (self.tokens + self.template_tokens) / (self.prompt_tokens + self.tokens)


CASES = (
    CoryCase("wide", 256, 4, 2, 8, 24, 32),
    CoryCase("wide", 256, 4, 2, 8, 24, 32, is_checkpointing=True),
    CoryCase("wide", 256, 4, 2, 8, 96, 32),
    CoryCase("narrow", 64, 5, 4, 8, 24, 32),
)


@dataclass(frozen=True)
class CoryResult:
    """What was measured of a case.

    Attributes:
        case (`CoryCase`): that was measured.
        rounds (`list[dict[str, Timing]]`): of a step, by `"grpo"` and `"cory"`.
        flops (`dict[str, dict[str, int]]`): the same, of `"rollout"` (texts alone) and `"step"` (all).
    """

    case: CoryCase
    rounds: list[dict[str, Timing]]
    flops: dict[str, dict[str, int]]

    def flops_ratio(self, part: str = "step") -> float:
        """FLOPs of two agents over GRPO's, of a step or of its `"rollout"` or `"rest"`."""
        parts = {who: {**own, "rest": own["step"] - own["rollout"]} for who, own in self.flops.items()}
        return parts["cory"][part] / parts["grpo"][part]

    def flops_off(self) -> float:
        """By which part FLOPs lie beside the theory."""
        return self.flops_ratio() / self.case.theory - 1

    def time_ratio(self, clock: str) -> float:
        """Median over rounds."""
        return median(entry["cory"].of(clock) / entry["grpo"].of(clock) for entry in self.rounds)

    def time_off(self, clock: str) -> float:
        """By which part time lies beside the theory."""
        return self.time_ratio(clock) / self.case.theory - 1

    def milliseconds(self, who: str, clock: str) -> float:
        """Of a step: the median over rounds."""
        return 1000 * median(entry[who].of(clock) for entry in self.rounds)


@dataclass(frozen=True)
class CoryMemory:
    """Bytes of a case.

    Attributes:
        case (`CoryCase`): that was measured.
        adapter (`int`), optimizer (`int`): of one agent.
        cory (`int`): peak of two agents.
        grpo (`int`), grpo_long (`int`): peaks of GRPO, with the pioneer's prompts and with longer ones.
    """

    case: CoryCase
    adapter: int
    optimizer: int
    cory: int
    grpo: int
    grpo_long: int

    @property
    def allowed(self) -> int:
        """GRPO on the longer prompts, with a second adapter and its optimizer's state."""
        return self.grpo_long + self.adapter + self.optimizer


def costs_table(results: Sequence[CoryResult]) -> str:
    """FLOPs and times, one row a case."""
    head = ["case", "texts", "P", "C", "T", "theory", "FLOPs: step", "rollout", "rest", "off, %"]
    head += ["GRPO, ms", "CORY, ms", "ratio", "off, %"]
    rows = []
    for r in results:
        case = r.case
        rows.append(
            [
                case.name,
                f"{case.prompts} x {case.generations}",
                *map(str, (case.prompt_tokens, case.tokens, case.template_tokens)),
                f"{case.theory:.2f}",
                *(f"{r.flops_ratio(part):.2f}" for part in ("step", "rollout", "rest")),
                f"{100 * r.flops_off():+.1f}",
                *(pair(lambda clock, o=r, w=who: o.milliseconds(w, clock), 0) for who in ("grpo", "cory")),
                pair(r.time_ratio),
                " / ".join(f"{100 * r.time_off(clock):+.1f}" for clock in ("cpu", "wall")),
            ]
        )
    return table(head, rows)


def memory_table(weighed: Sequence[CoryMemory]) -> str:
    """Kilobytes, one row a case."""
    head = ["peak of memory, kB", "GRPO", "GRPO, longer prompts", "adapter", "its optimizer", "allowed", "CORY"]
    rows = [
        [m.case.name, *(f"{n / 1000:.0f}" for n in (m.grpo, m.grpo_long, m.adapter, m.optimizer, m.allowed, m.cory))]
        for m in weighed
    ]
    return table(head, rows)


def targets_table(results: Sequence[CoryResult], weighed: Sequence[CoryMemory]) -> str:
    """What a second agent was to cost, and whether it does."""
    rows = []
    for r in results:
        values = {"FLOPs": (abs(r.flops_off()), FLOPS_LIMIT), "CPU time": (r.time_off("cpu"), TIME_LIMIT)}
        for what, (off, limit) in values.items():
            side = "beside" if what == "FLOPs" else "above"
            rows.append(
                [f"{r.case.name}: {what} {side} the theory", f"{limit:.0%}", f"{off:+.1%}", _verdict(off, limit)]
            )
    for m in weighed:
        shown = (f"{m.allowed / 1000:.0f} kB", f"{m.cory / 1000:.0f} kB")
        rows.append([f"{m.case.name}: peak of memory", *shown, _verdict(m.cory, m.allowed)])
    return table(["target", "at most", "measured", ""], rows)


def _verdict(value: float, limit: float) -> str:
    return "met" if value <= limit else "not met"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    return parse_cases(case_parser("cory", __doc__, "7", "'wide-*'", "small models, one round"), given, _choose)


def _choose(options: argparse.Namespace) -> bool:
    options.chosen = [case for case in CASES if matches(case.name, options.cases)]
    if options.quick:
        small = {"hidden_size": 32, "layers": 2, "prompts": 1, "generations": 2, "tokens": 12}
        options.chosen = [replace(case, **small) for case in options.chosen[:1]]
    return bool(options.chosen)


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    options = arguments(given)
    if options.list:
        print("\n".join(case.name for case in options.chosen))
        return
    # TRL takes many seconds to import
    from tests.benchmarks.cory_contenders import measure, measure_memory

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    results, weighed = [], []
    for number, case in enumerate(options.chosen, 1):
        spent, result = timed(lambda c=case: measure(c, options.rounds or (1 if options.quick else 7)))
        results.append(result)
        weighed.append(measure_memory(case))
        off = f"FLOPs {result.flops_off():+.1%}, CPU {result.time_off('cpu'):+.1%} beside the theory"
        report(f"[{number}/{len(options.chosen)}] {case.name}: {off} ({spent.wall:.0f} s)")
    setting = f"CPU, {torch.get_num_threads()} thread(s); torch {torch.__version__}. Pairs are CPU / wall time."
    finish([setting, targets_table(results, weighed), costs_table(results), memory_table(weighed)], options.output)


if __name__ == "__main__":
    main()
