"""What the training benchmark measures: cases by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.benchmarks.cases import matches
from tests.benchmarks.costs import Timing

DRAWS = ("draw-token", "draw-word", "draw-span")
"""Modes in which one drawn member writes at a time; one draw holds for all rows of a batch."""


@dataclass(frozen=True)
class TrainingCase:
    """One rollout and one update, in turn with what they are compared with.

    Attributes:
        members (`str`), tokenizers (`str`), count (`int`): see `tests.benchmarks.members`.
        prompts (`int`), generations (`int`): a rollout has `prompts * generations` texts.
        tokens (`int`): of every text.
        mode (`str`): `"dense"`, or one of `DRAWS`.
    """

    members: str
    tokenizers: str
    count: int
    prompts: int
    generations: int
    tokens: int
    mode: str = "dense"

    @property
    def name(self) -> str:
        """What `--cases` is matched with."""
        shape = f"m{self.count}-p{self.prompts}-g{self.generations}-t{self.tokens}"
        return f"{self.members}-{self.tokenizers}-{shape}-{self.mode}"

    @property
    def batch(self) -> int:
        """Texts of a rollout."""
        return self.prompts * self.generations

    @property
    def objective(self) -> str:
        """`"mixture"`, which needs the members' probabilities of all tokens, or `"ppo"` where it would not draw.

        Texts of drawn words and spans do not come from the mixture of every token, and with different tokenizers
        `mixture` samples from the mixture itself.
        """
        draws_for_mixture = self.mode == "draw-token" and self.tokenizers == "same"
        return "mixture" if self.draws is None or draws_for_mixture else "ppo"

    @property
    def draws(self) -> tuple[str, str] | None:
        """`draw` and `draw_scope` of the ensemble, if members are drawn."""
        return (self.mode.removeprefix("draw-"), "batch") if self.mode in DRAWS else None


@dataclass(frozen=True)
class TrainingResult:
    """Times of one case.

    Attributes:
        case (`TrainingCase`): that was measured.
        rounds (`list[dict[str, Timing]]`): by what was timed: `"member k"`, and `"rlae"` or `"grpo"` with `rollout`,
            `filling` or `step`.
    """

    case: TrainingCase
    rounds: list[dict[str, Timing]]


def default_cases() -> Iterator[TrainingCase]:
    """The default cases: embedded members need no files beside the package."""
    for tokenizers in ("same", "different"):
        for mode in ("dense", *DRAWS):
            yield TrainingCase("embedded", tokenizers, 3, 4, 8, 32, mode)
    for tokenizers in ("same", "different"):
        for mode in ("dense", *DRAWS):
            yield TrainingCase("small", tokenizers, 2, 2, 4, 32, mode)


def further_cases() -> Iterator[TrainingCase]:
    """Cases that are measured only where `--cases` asks for them."""
    for members in ("real", "flat"):
        for tokenizers in ("same", "different"):
            for mode in ("dense", "draw-word"):
                yield TrainingCase(members, tokenizers, 2, 2, 4, 32, mode)
    for tokenizers in ("same", "different"):
        yield TrainingCase("small", tokenizers, 2, 4, 8, 64)


def chosen_cases(patterns: Sequence[str], quick: bool) -> list[TrainingCase]:
    """The cases that match a pattern; with `quick` only embedded members, and few short texts."""
    cases = [*default_cases(), *(further_cases() if patterns else ())]
    chosen = [case for case in cases if matches(case.name, patterns)]
    if quick:
        chosen = [case for case in chosen if case.members == "embedded" and case.mode in ("dense", "draw-word")]
        chosen = [replace(case, prompts=2, generations=2, tokens=12) for case in chosen]
    return chosen
