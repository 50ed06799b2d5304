"""What the cost benchmark can measure, and what it measures by default."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

KINDS = ("draw", "processor", "policy")
"""What a mode begins with where it is more than a way of decoding."""


@dataclass(frozen=True)
class Case:
    """What is measured in one go: which members, how many, rows, new tokens, and the way of decoding.

    Modes are "sample" and "greedy", and

    * "draw-token", "draw-word", "draw-span": sampling from one drawn member at a time; "draw-token-batch" and so on
      with one draw for all rows;
    * "processor-sample", "processor-greedy": `EnsembleLogitsProcessor` inside the first member's `generate`;
      "processor-rereads" is sampling with `host_rereads=True`;
    * "policy-sample", "policy-greedy": a learned policy that observes the members against uniform weights.
    """

    members: str
    tokenizers: str
    count: int
    batch: int
    tokens: int
    mode: str

    @property
    def name(self) -> str:
        """What `--cases` is matched with."""
        return f"{self.members}-{self.tokenizers}-m{self.count}-b{self.batch}-t{self.tokens}-{self.mode}"

    def at(self, tokens: int) -> Case:
        """The same case with another number of new tokens."""
        return replace(self, tokens=tokens)

    @property
    def kind(self) -> str:
        """One of `KINDS`, or "plain"."""
        first = self.mode.split("-")[0]
        return first if first in KINDS else "plain"

    @property
    def draws(self) -> tuple[str, str] | None:
        """`draw` and `draw_scope` of the ensemble, if members are drawn."""
        if self.kind != "draw":
            return None
        _, unit, *scope = self.mode.split("-")
        return unit, scope[0] if scope else "row"

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `generate`, for ensembles and members alike."""
        is_greedy = self.mode.endswith("greedy")
        drawn = {"do_sample": False} if is_greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}
        return {"min_new_tokens": self.tokens, "max_new_tokens": self.tokens, **drawn}

    def rounds(self, quick: bool) -> int:
        """How often everything takes its turn; a policy's share is small, so that it takes many rounds to see it."""
        if quick:
            return 3
        if self.kind == "policy":
            return 32
        return (5 if self.batch == 1 else 3) - (self.tokens > 64) * (2 if self.batch == 1 else 1)


def default_cases(device: str) -> Iterator[Case]:
    """The default cases, shortest first within each group."""
    for tokenizers in ("same", "different"):
        for batch in (1, 8):
            for mode in ("sample", "greedy"):
                yield Case("small", tokenizers, 2, batch, 64, mode)
            if batch == 1 or tokenizers == "different":
                yield Case("small", tokenizers, 2, batch, 512, "sample")
            if batch == 1:
                yield Case("small", tokenizers, 3, batch, 64, "sample")
    for tokenizers in ("same", "different"):
        for count in (2, 3):
            for batch, mode in ((1, "draw-token"), (1, "draw-word"), (8, "draw-token-batch")):
                yield Case("small", tokenizers, count, batch, 64, mode)
    for tokenizers in ("same", "different"):
        for mode in ("processor-sample", "processor-greedy"):
            yield Case("small", tokenizers, 2, 1, 64, mode)
    yield Case("small", "different", 2, 8, 64, "processor-sample")
    for mode in ("processor-sample", "processor-rereads"):
        yield Case("real", "different", 2, 1, 64, mode)
    for tokenizers in ("same", "different"):
        yield Case("small", tokenizers, 2, 1, 64, "policy-sample")
    for tokenizers in ("same", "different"):
        for tokens in (64, 512):
            yield Case("narrow", tokenizers, 2, 1, tokens, "sample")
    for tokenizers in ("same", "different"):
        for count, batch in ((2, 1), (2, 8), (3, 1)):
            yield Case("real", tokenizers, count, batch, 64, "sample")
    for tokenizers in ("same", "different"):
        for batch in (1, 8):
            yield Case("embedded", tokenizers, 3, batch, 32, "sample")
    if device != "cpu":
        for tokenizers in ("same", "different"):
            for batch in (1, 8):
                for tokens in (64, 512):
                    yield Case("large", tokenizers, 2, batch, tokens, "sample")


def further_cases() -> Iterator[Case]:
    """Cases that are measured only where `--cases` asks for them."""
    for batch in (1, 8):
        yield Case("flat", "different", 2, batch, 64, "sample")
    for tokenizers in ("same", "different"):
        yield Case("small", tokenizers, 2, 1, 256, "sample")
        yield Case("small", tokenizers, 2, 8, 64, "policy-sample")
        for mode in ("draw-token", "draw-span", "draw-word-batch"):
            yield Case("small", tokenizers, 2, 1 if mode == "draw-span" else 8, 64, mode)
        for mode in ("greedy", "draw-token", "draw-word", "processor-sample", "policy-sample"):
            yield Case("embedded", tokenizers, 3, 1, 32, mode)
    yield Case("small", "different", 2, 1, 64, "processor-rereads")
    for members in ("small", "real"):
        for tokenizers in ("same", "different"):
            yield Case(members, tokenizers, 3, 8, 64, "sample")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is found in a name; without patterns every name counts."""
    return not patterns or any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def chosen_cases(patterns: Sequence[str], quick: bool, device: str) -> list[Case]:
    """The cases that match a pattern; with `quick` few tokens, and three members only of the embedded ones."""
    cases = [*default_cases(device), *(further_cases() if patterns else ())]
    chosen = [case for case in cases if matches(case.name, patterns)]
    if quick:
        chosen = [case for case in chosen if case.count == 2 or case.members == "embedded"]
        chosen = [case for case in chosen if case.tokens < 512 or case.members == "narrow"]
        chosen = [case.at(96 if case.tokens > 64 else min(case.tokens, 24)) for case in chosen]
    return chosen
